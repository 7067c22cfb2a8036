"""Some columns of the weight at a time are dequantised, then multiplied by PyTorch.

The sum's order is that of a PyTorch product, which may depend on the number of rows of x.
"""

import torch
from torch import Tensor

from kernels.linear_w4a16.columns import dequantized_columns

CHUNK_WEIGHTS = 1 << 22
"""Weights dequantised at a time: 16 MB in fp32."""


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
    out = torch.empty(x.shape[0], qweight.shape[1], dtype=x.dtype, device=x.device)
    step = max(1, CHUNK_WEIGHTS // x.shape[1])
    for part, weight in dequantized_columns(qweight, scales, zeros, group_size, g_idx, step):
        out[:, part] = x @ weight.to(x.dtype)
    return out if bias is None else out.add_(bias)
