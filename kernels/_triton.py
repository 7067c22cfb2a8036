"""The only module that imports Triton. Everything else works where Triton is not installed.

An op's `triton.py` takes `triton` and `tl` from here, and `<op>/__init__.py` imports it only if
`AVAILABLE`. Kernels must not depend on how many rows share a launch: fixed tiles along the reduced
dimension, no atomic sums, no autotuned tile that changes an order of accumulation.
"""

import functools

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["AVAILABLE", "capability", "runs_on", "tl", "triton"]

AVAILABLE = triton is not None

if AVAILABLE:
    # The default differs between releases, and some warn that it will change.
    triton.knobs.language.default_fp_fusion = True

if AVAILABLE and triton.knobs.runtime.interpret:
    from kernels import _interpreter

    _interpreter.repair()


def cache_is_default() -> bool:
    """Whether the folder of Triton's compiled kernels is the default one."""
    cache = triton.knobs.cache
    return bool(cache.dir == cache.get_triton_dir("cache"))


pretended_gpu: int | None = None
"""Compute capability of a pretended GPU, while `kernels.tools.launches.recorded` records its
launches."""


def runs_on(*tensors: torch.Tensor) -> bool:
    """Whether Triton kernels take these tensors: all on an NVIDIA GPU."""
    return pretended_gpu is not None or all(t.is_cuda for t in tensors)


def capability(device: torch.device) -> int:
    """Return the compute capability of a GPU: 80 for an A100, and also for interpreted kernels."""
    if pretended_gpu is not None:
        return pretended_gpu
    return _capability(device) if device.type == "cuda" else 80


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
