"""The instruction set of the settings reaches the worker's operations before anything is loaded."""

from types import SimpleNamespace

import pytest

from engine.contract.kinds import KINDS
from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError
from engine.worker import loop
from engine.worker.messages import WorkerSpec
from kernels import cache_folder, isa
from server.process.serve import create_process_engine
from server.settings import load_settings


class Reached(Exception):
    """Loading goes on."""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`load(cpu_isa)`: what a worker does that was told so, on a processor with AVX2 at most; or
    on another `rung`, and with a model of another kind."""
    monkeypatch.setattr(isa, "_chosen", isa.NATIVE)
    monkeypatch.setattr(cache_folder, "use_cache_folder", lambda folder: None)

    def stop(*_, **__):
        raise Reached

    checkpoint = SimpleNamespace(path="x")
    monkeypatch.setattr("engine.weights.source.resolve_source", lambda *_, **__: checkpoint)
    monkeypatch.setattr(loop, "reserve_process", lambda link, process: None)
    monkeypatch.setattr("engine.weights.adapter_source.with_adapters_here", stop)

    def run(cpu_isa, *, rung="x86-64-v3", kind="text", optimize_for="throughput"):
        monkeypatch.setattr(isa, "features", lambda: frozenset(isa.RUNGS[rung]))
        monkeypatch.setattr(loop, "kind_of_checkpoint", lambda *_: KINDS[kind])
        spec = WorkerSpec(
            address="",
            ref="x",
            model="x",
            config=EngineConfig(optimize_for=optimize_for),
            cache_dir=str(tmp_path),
            offline=True,
            cpu_isa=cpu_isa,
            log_format="json",
            log_level="info",
            pulse_fd=-1,
        )
        loop.load(spec, SimpleNamespace(report=print, send=print))

    return run


def test_a_worker_compiles_for_what_it_was_told(load):
    with pytest.raises(Reached):
        load("x86-64-v3")
    assert isa.chosen() == "x86-64-v3"


@pytest.mark.parametrize(
    ("kind", "optimize_for", "chosen"),
    [
        ("text", "latency", "x86-64-v4-bf16"),
        ("text", "throughput", isa.NATIVE),
        ("image", "latency", isa.NATIVE),
    ],
)
def test_latency_is_for_text(load, kind, optimize_for, chosen):
    with pytest.raises(Reached):
        load("native", rung="x86-64-v4-amx", kind=kind, optimize_for=optimize_for)
    assert isa.chosen() == chosen


def test_a_worker_says_what_its_processor_lacks(load):
    with pytest.raises(ModelLoadError, match="avx512f") as caught:
        load("x86-64-v4")
    assert caught.value.param == "cpu_isa"


def test_the_setting_goes_to_every_worker():
    client = create_process_engine(load_settings({"cpu_isa": "x86-64-v3"}))
    assert [one._options.cpu_isa for one in client._workers._supervisors.values()] == [
        "x86-64-v3"
    ] * 2
