"""Findings about memory: known needs, and plans."""

import random

import pytest

from engine.contract.model_spec import DEFAULT_MODELS
from engine.contract.orders import PlanningOrder
from engine.planning.planner import make_plan
from server.doctor import memory
from server.settings import load_settings
from server.terminal.own_process import OrderProblem

GIB = 1 << 30


def row(fits, **changes):
    total = random.randrange(1, 9) * GIB
    fields = {"fits": fits, "total_bytes": total, "is_stored": False, "max_tokens": 0, "flags": []}
    return {**fields, **changes}


def findings(models, monkeypatch, rows=(), problem=None):
    orders = []

    def report_of(order, settings, config, tell):
        orders.append((order, settings))
        if problem is not None:
            raise OrderProblem(problem)
        return {"replicas": 1, "free_bytes": 8 * GIB, "device": "a chip", "rows": list(rows)}

    monkeypatch.setattr(memory, "report_of", report_of)
    found = list(memory.memory(load_settings({"models": models})))
    assert all(settings.offline and not order.measures_speed for order, settings in orders)
    return found


@pytest.mark.parametrize(("free", "health"), [(64 * GIB, "ok"), (GIB, "broken")])
def test_the_default_models_are_not_planned(free, health, monkeypatch):
    monkeypatch.setattr(memory, "available_host_memory", lambda: free)
    [finding] = findings(DEFAULT_MODELS, monkeypatch)
    assert finding.health == health
    assert "smollm2-135m-instruct and tandem-shapes need 1.4 GiB" in finding.found
    assert f"{free / GIB:.1f} GiB free" in finding.found


def test_each_replica_needs_as_much(monkeypatch):
    monkeypatch.setattr(memory, "available_host_memory", lambda: 2 * GIB)
    three = '{"ref": "smollm2-135m-instruct", "name": "m", "settings": {"replicas": 3}}'
    [finding] = findings([three], monkeypatch)
    assert finding.health == "broken" and "m needs 2.1 GiB" in finding.found


@pytest.mark.slow
def test_the_default_models_needs_are_what_is_planned(smollm2_checkpoint):
    here = {"smollm2-135m-instruct": str(smollm2_checkpoint.path), "tandem-shapes": "tandem-shapes"}
    assert {*memory.KNOWN_BYTES} == {*DEFAULT_MODELS} == {*here}
    for model, needed in memory.KNOWN_BYTES.items():
        order = PlanningOrder(model=here[model], measures_speed=False)
        rows = make_plan(order, lambda message: None)["rows"]
        kept = next((row for row in rows if row["is_stored"]), rows[0])
        assert kept["total_bytes"] == pytest.approx(needed, rel=0.25)


@pytest.mark.parametrize(
    ("rows", "health", "words"),
    [
        ([row(True), row(True, is_stored=True, total_bytes=3 * GIB)], "ok", "needs 3.0 GiB"),
        (
            [row(False, is_stored=True), row(True, flags=["--quantization int4"])],
            "limited",
            "tandem serve --model org/big --quantization int4",
        ),
        ([row(False, is_stored=True), row(False, max_tokens=99)], "limited", "tandem plan"),
        ([row(False), row(False)], "broken", "smaller model"),
    ],
)
def test_another_model_is_planned(rows, health, words, monkeypatch):
    [finding] = findings(["org/big"], monkeypatch, rows)
    assert finding.part == "memory for org/big"
    assert finding.health == health
    assert words in f"{finding.found} {finding.fix}"


@pytest.mark.parametrize(
    ("problem", "health", "fix"),
    [
        ("org/big is not in the cache and offline mode is on; start", "limited", "tandem pull org"),
        ("net makes mattes; plans exist only for models", "ok", None),
        ("'big' is neither a folder; give a folder", "broken", "give a folder"),
    ],
)
def test_a_model_that_cannot_be_planned(problem, health, fix, monkeypatch):
    [finding] = findings(["org/big"], monkeypatch, problem=problem)
    assert finding.health == health
    assert finding.fix is None if fix is None else fix in finding.fix
