"""The one place that imports Triton. Everything else works where it is not installed.

An op's `triton.py` takes `triton` and `tl` from here, and `<op>/__init__.py` imports it only if
`AVAILABLE`. Kernels must not depend on how many rows share a launch: fixed tiles along the
reduced dimension, no atomic sums, no autotuned tile that changes an order of accumulation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["AVAILABLE", "Variant", "Variants", "runs_on", "tl", "triton"]

AVAILABLE = triton is not None

if AVAILABLE:
    # The default differs between releases, and some warn that they will change it.
    triton.knobs.language.default_fp_fusion = True

if AVAILABLE and triton.knobs.runtime.interpret:
    from kernels import _interpreter

    _interpreter.repair()


def cache_is_default() -> bool:
    """Whether nobody said where Triton keeps what it compiles."""
    cache = triton.knobs.cache
    return bool(cache.dir == cache.get_triton_dir("cache"))


def runs_on(*tensors: torch.Tensor) -> bool:
    """Whether Triton kernels take these tensors: all on an NVIDIA GPU."""
    return all(t.is_cuda for t in tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One specialisation of a kernel, to be compiled ahead of time where there is no GPU.

    `<op>/triton.py` lists its own in `variants()`, at the shapes of `kernels.model_shapes`.
    """

    kernel: Any
    """The `@triton.jit` function."""
    name: str
    """What the shapes stand for, such as `llama3_8b decode`."""
    signature: Mapping[str, str]
    """Every argument that is not a constant → its type: `*bf16`, `*i32`, `i32`, `fp32` ..."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Every `tl.constexpr` argument."""
    unaligned: tuple[str, ...] = ()
    """Pointers and integers that are not divisible by 16, the rest is."""
    num_warps: int = 4
    num_stages: int = 3
    fp_fusion: bool = True
    """As in the launch: whether compilers may fuse multiplications with additions."""
    capabilities: tuple[int, ...] = (80, 90, 100)
    """The GPUs that run it; the others get another one."""
    uses_tensor_cores: bool = False
    """A GEMM or a prefill attention: compiled code without tensor-core instructions is a fault."""


Variants = Callable[[], list[Variant]]
