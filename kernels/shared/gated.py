"""The common part of the C++ gates: two halves of a row in, one half out."""

import torch
from torch import Tensor

from kernels import native

SIGNATURE = "ipipii"
"""The signature of their C functions (`gated.h`): dtype, input, its row stride, output, rows, size
of a half."""


def supports(halves: Tensor) -> bool:
    """Supports CPU tensors of two dimensions whose last one is contiguous."""
    return halves.dim() == 2 and halves.stride(1) == 1 and native.runs_on(halves)


def run(function: native.Function, halves: Tensor) -> Tensor:
    """Run a gate: [T, 2·I] to [T, I], contiguous."""
    rows, size = halves.shape[0], halves.shape[1] // 2
    out = torch.empty((rows, size), dtype=halves.dtype)
    function(
        native.DTYPES[halves.dtype],
        halves.data_ptr(),
        halves.stride(0),
        out.data_ptr(),
        rows,
        size,
    )
    return out
