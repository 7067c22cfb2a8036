"""The whole weight, or some of its rows at a time, is dequantised, then multiplied by PyTorch.

The sum's order is that of `F.linear`, which may depend on the number of rows of x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_nf4.reference import dequantize

CHUNK_WEIGHTS = 1 << 22
"""Weights dequantised at a time: 16 MB in fp32."""


def supports(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    block_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    *,
    fp4: bool = False,
) -> bool:
    """Supports rows that start with a block, so that some of them can be dequantised alone."""
    return shape[1] % block_size == 0


def linear_nf4(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    block_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    *,
    fp4: bool = False,
) -> Tensor:
    """See `kernels.linear_nf4`."""
    num_outputs, size = shape
    packed = weight.view(num_outputs, -1)
    magnitudes = absmax.view(num_outputs, -1)
    out = torch.empty(x.shape[0], num_outputs, dtype=x.dtype, device=x.device)
    step = max(1, CHUNK_WEIGHTS // size)
    for start in range(0, num_outputs, step):
        rows = slice(start, start + step)
        part = packed[rows]
        its_absmax, its_shape = magnitudes[rows].flatten(), (len(part), size)
        chunk = dequantize(part, its_absmax, block_size, its_shape, fp4=fp4)
        out[:, rows] = F.linear(x, chunk.to(x.dtype))
    return out if bias is None else out.add_(bias)
