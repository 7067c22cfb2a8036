"""The common part of the C++ gates: two halves of a row in, or a row of each half; one half out."""

import torch
from torch import Tensor

from kernels import native

SIGNATURE = "ipipipii"
"""The signature of their C functions (`gated.h`): dtype, first half, its row stride, second half,
its row stride, output, rows, size of a half."""


def supports(halves: Tensor, second: Tensor | None = None) -> bool:
    """Supports CPU tensors of two dimensions whose last one is contiguous."""
    if halves.dim() != 2 or halves.stride(1) != 1:
        return False
    if second is None:
        return native.runs_on(halves)
    return second.stride(1) == 1 and native.runs_on(halves, second)


def run(function: native.Function, halves: Tensor, second: Tensor | None = None) -> Tensor:
    """Run a gate: [T, 2·I], or [T, I] of each half, to [T, I], contiguous."""
    rows, size = halves.shape
    if second is None:
        size //= 2
        second_at, second_stride = halves.data_ptr() + size * halves.itemsize, halves.stride(0)
    else:
        second_at, second_stride = second.data_ptr(), second.stride(0)
    out = torch.empty((rows, size), dtype=halves.dtype)
    function(
        native.DTYPES[halves.dtype],
        halves.data_ptr(),
        halves.stride(0),
        second_at,
        second_stride,
        out.data_ptr(),
        rows,
        size,
    )
    return out
