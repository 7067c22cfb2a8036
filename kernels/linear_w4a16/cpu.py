"""Some columns of the weight at a time are dequantised, rearranged and multiplied in C++.

A row's result has the same bits whatever the other rows are, those of `linear_packed` for the
dequantised weight in x's dtype.
"""

import torch
from torch import Tensor

from kernels import native
from kernels.linear_packed import PackedWeight, linear_packed
from kernels.linear_w4a16.columns import dequantized_columns
from kernels.shared.strip_rows import STRIP

CHUNK_WEIGHTS = 1 << 17
"""Weights dequantised at a time: half a megabyte in fp32, which fits a cache."""


def supports(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> bool:
    """Supports CPU tensors with contiguous elements in rows of x."""
    return x.stride(1) == 1 and qweight.is_cpu and native.runs_on(x)


def linear_w4a16(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `kernels.linear_w4a16`."""
    out = torch.empty(x.shape[0], qweight.shape[1], dtype=x.dtype)
    step = max(1, CHUNK_WEIGHTS // x.shape[1] // STRIP) * STRIP
    for part, weight in dequantized_columns(qweight, scales, zeros, group_size, g_idx, step):
        packed = PackedWeight.pack(weight.to(x.dtype).T)
        out[:, part] = linear_packed(x, packed, None if bias is None else bias[part].float())
    return out
