"""Some rows of the weight at a time are dequantised, then multiplied by PyTorch.

The sum's order is that of `F.linear`, which may depend on the number of rows of x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.fields import fields_together
from kernels.linear_gguf.quant_type import GGUFType
from kernels.linear_gguf.reference import INT8_GROUP
from kernels.shared.int8_activations import round_to_int8

CHUNK_WEIGHTS = 1 << 22
"""Weights dequantised at a time: 16 MB in fp32."""


def linear_gguf(
    x: Tensor,
    weight: Tensor,
    quant_type: GGUFType,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.linear_gguf`."""
    y = x
    if int8_activations:
        # Not in x's dtype, which may not hold int8 times a scale.
        q, scale = round_to_int8(x, INT8_GROUP)
        y = (q * scale).reshape(x.shape)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    step = max(1, CHUNK_WEIGHTS // x.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        part = None if bias is None else bias[rows].to(y.dtype)
        plain = dequantize(fields_together(weight[rows], quant_type), quant_type)
        out[:, rows] = F.linear(y, plain.to(y.dtype), part)
    return out
