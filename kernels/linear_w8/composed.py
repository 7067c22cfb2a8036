"""Exact sums of integers, or products with some rows of the weight converted at a time.

The order of the latter sums is that of `F.linear`, which may depend on the number of rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.int8_activations import round_to_int8

CHUNK_WEIGHTS = 1 << 22
"""Weights converted at a time: 8 MB in bf16."""
EXACT_TERMS = 1024
"""The number of products of int8 numbers that fp32 sums up exactly in any order."""


def linear_w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.linear_w8`."""
    out = torch.empty(x.shape[0], weight.shape[0], device=x.device)
    if int8_activations:
        q, row_scale = round_to_int8(x, x.shape[1])
        torch.mul(_integer_product(q.flatten(1), weight), row_scale.flatten(1), out=out)
    else:
        step = max(1, CHUNK_WEIGHTS // x.shape[1])
        for start in range(0, weight.shape[0], step):
            rows = slice(start, start + step)
            out[:, rows] = F.linear(x, weight[rows].to(x.dtype))
    out *= scale
    if bias is not None:
        out += bias
    return out.to(x.dtype)


def _integer_product(q: Tensor, weight: Tensor) -> Tensor:
    """Compute `q @ weight.T` of int8 matrices exactly.

    Floats are used, because `torch._int_mm` saturates sums of two products to 16 bits on processors
    without VNNI, and cuBLAS takes only some shapes of integers.
    """
    sums = torch.zeros(q.shape[0], weight.shape[0], dtype=torch.int32, device=q.device)
    for start in range(0, q.shape[1], EXACT_TERMS):
        terms = slice(start, start + EXACT_TERMS)
        sums += F.linear(q[:, terms].float(), weight[:, terms].float()).int()
    return sums
