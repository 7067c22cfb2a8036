"""The definition, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.fields import fields_together
from kernels.linear_gguf.quant_type import GGUFType
from kernels.shared.int8_activations import round_to_int8

INT8_GROUP = 32
"""Activations that share a scale."""


def linear_gguf(
    x: Tensor,
    weight: Tensor,
    quant_type: GGUFType,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.linear_gguf`."""
    y = x.float()
    if int8_activations:
        q, scale = round_to_int8(y, INT8_GROUP)
        y = (q * scale).reshape(x.shape)
    plain = dequantize(fields_together(weight, quant_type), quant_type)
    out = F.linear(y, plain, None if bias is None else bias.float())
    return out.to(x.dtype)
