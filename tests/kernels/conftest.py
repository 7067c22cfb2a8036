"""Fixtures that compile the C++ operations for other processors than this one."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kernels import _triton, building, cache_folder, compilers, isa, native
from tests.helpers.kernels.rungs import HAS_RUNGS
from tests.helpers.kernels.sample_tokens_runs import RUNS

# Two test processes that each use all cores would wait for each other most of the time.
torch.set_num_threads(1)


@pytest.fixture
def run_build(monkeypatch: pytest.MonkeyPatch) -> "Callable[[str], None]":
    """`run_build(name)` compiles what `native` is patched to be for an instruction set, and has the
    operations run from it until the test ends. What this processor cannot run is compiled all the
    same, and the test skipped."""

    def switch(name: str) -> None:
        compiler = compilers.find()
        if compiler is None:
            pytest.skip("no C++ compiler")
        if name in isa.RUNGS and not HAS_RUNGS:
            pytest.skip(f"this machine's compilers know no {name}")
        monkeypatch.setattr(isa, "_chosen", name)
        forget()
        building.built(compiler)
        if lacks := isa.missing(name):
            pytest.skip(f"compiled and not run: this processor has no {', '.join(lacks)}")
        assert native.library() is not None

    def forget() -> None:
        native.library.cache_clear()
        for module_name, module in sys.modules.items():
            is_cpu = module_name.startswith("kernels.") and module_name.endswith(".cpu")
            # One that calls another operation has no function of its own.
            if is_cpu and hasattr(module, "_function"):
                module._function.cache_clear()

    yield switch
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="session")
def other_builds(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operations that are compiled for tests alone, kept from run to run."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    return cache.mkdir("kernels") if cache else tmp_path_factory.mktemp("kernels")


@pytest.fixture
def run_build_of(
    run_build: Callable[[str], None], other_builds: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`run_build_of(cpu, name, *flags)`: the same for one operation alone, with more flags, and
    built five times sooner: arithmetic does not depend on the optimisation. The lowest rung is
    there for all operations, since some tests need them."""

    def switch(cpu: ModuleType, name: str, *flags: str) -> None:
        if name == next(iter(isa.RUNGS)) and not flags:
            run_build(name)
            return
        assert cpu.__file__ is not None
        sources = sorted(Path(cpu.__file__).parent.glob("*.cpp"))
        monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-O0", "-Wno-psabi", *flags))
        monkeypatch.setattr(building, "_sources", lambda: sources)
        monkeypatch.setattr(cache_folder, "_folder", other_builds)
        run_build(name)

    return switch


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels take tensors on a CPU, where they are interpreted."""
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Each way to run `sample_tokens`, the Triton kernel interpreted."""
    if request.param == "triton":
        monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    return RUNS[request.param]
