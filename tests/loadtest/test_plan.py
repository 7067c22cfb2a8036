from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.plan import load_plan

PLAN = """
label: two servers
concurrencies: [1, 4]
variables: {ROOT: "~/peers", MODELS: "${ROOT}/models", PORT: 8100}
servers:
  - {name: a, command: "exec $ROOT/a --port ${PORT}", url: "http://h:${PORT}/v1", model: m}
  - {name: b, command: exec b, url: "http://h:2/v1", model: "${MODELS}/m", version_command: b -v,
     extra_body: {ignore_eos: false}}
"""


@pytest.fixture
def plan_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/x")
    for name in ("ROOT", "MODELS", "PORT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_a_plan(plan_path: Path) -> None:
    plan = load_plan(plan_path)
    first, second = plan.servers
    assert first.variables == {
        "ROOT": "/home/x/peers",
        "MODELS": "/home/x/peers/models",
        "PORT": "8100",
    }
    assert first.command == "exec $ROOT/a --port ${PORT}"
    assert first.url == "http://h:8100/v1"
    assert first.variables == second.variables
    assert second.model == "/home/x/peers/models/m"
    assert (first.extra_body, second.extra_body) == ({}, {"ignore_eos": False})
    assert (plan.label, plan.concurrencies, plan.repeats, plan.warmup) == (
        "two servers",
        (1, 4),
        3,
        4,
    )


def test_where_variables_come_from(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/env")
    monkeypatch.setenv("PORT", "1")
    plan = load_plan(plan_path, {"PORT": "2"})
    assert plan.servers[0].variables == {"ROOT": "/env", "MODELS": "/env/models", "PORT": "2"}


def test_parts_of_a_plan(plan_path: Path) -> None:
    plan = load_plan(plan_path)
    assert [server.name for server in plan.only(["b"]).servers] == ["b"]
    with pytest.raises(ValueError, match="'c'; there are: a, b"):
        plan.only(["c"])
    assert plan.having(repeats=9, concurrencies=(2,)).repeats == 9
    assert plan.having() == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping"),
        ("servers: [3]", "a server must be a mapping"),
        ("servers: []\nrepeat: 2", "the plan has unknown keys: repeat"),
        ("label: x", "the plan lacks: servers"),
        ("servers: [{name: a, command: b, url: c}]", "a server lacks: model"),
        ("servers: [{name: a, command: b, url: '${X}', model: m}]", r"\$\{X\} is not among"),
        (PLAN.replace("name: b", "name: a"), "same name"),
    ],
)
def test_plans_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_plan(path)


def test_the_projects_own_plans_load() -> None:
    folder = Path(__file__).parents[2] / "loadtest" / "scenarios"
    names = ("peers", "llama-1b", "long-prompts", "adapters")
    plans = {name: load_plan(folder / f"{name}.yaml") for name in names}
    assert {plan.rung for plan in plans.values()} == {"native"}
    assert [plan.output_tokens for plan in plans.values()] == [64, 16, 32, 64]
    for plan in plans.values():
        assert len({server.url for server in plan.servers}) == len(plan.servers)
    held = load_plan(folder / "peers.yaml", {"ISA": "x86-64-v3"})
    assert held.rung == "x86-64-v3"
    groups = [server.groups for server in plans["llama-1b"].servers]
    assert groups == [("Q4_0",)] * 2 + [("Q4_K_M",)] * 4 + [("Q8_0",)] * 3 + [("BF16",)] * 2


def test_lengths_counts_rung_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        """
label: "on ${RUNG}"
rung: ${RUNG}
variables: {RUNG: native}
concurrencies: [1, 8]
prompt_words: [503, 2039]
output_tokens: 16
num_requests: {1: 3}
servers: [{name: a, command: b, url: c, model: d, groups: [e, f], models: [g, h]}]
"""
    )
    plan = load_plan(path, {"RUNG": "x86-64-v3"})
    assert (plan.label, plan.rung) == ("on x86-64-v3", "x86-64-v3")
    assert (plan.prompt_words, plan.output_tokens) == ((503, 2039), 16)
    assert plan.num_requests == {1: 3}
    assert plan.servers[0].groups == ("e", "f")
    assert plan.servers[0].models == ("g", "h")
    assert plan.having(repeats=2).num_requests == {1: 3}
    assert plan.having(prompt_words=(9,)) == replace(plan, prompt_words=(9,))
    assert plan.having(concurrencies=(1, 2), num_requests=5).num_requests == {1: 5, 2: 5}
    assert load_plan(path).rung == "native"
