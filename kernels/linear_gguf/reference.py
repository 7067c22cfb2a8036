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
    """Multiply rows by a quantised weight: `x @ dequantize(weight).T + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided. K is a multiple of the type's block: 32
            weights, or 256 for the `_K` types.
        weight: [N, bytes of a row] uint8, contiguous: each row is K / block blocks with the bytes
            of the file (`quant_type.row_bytes`), in the order of `fields_apart`.
        quant_type: the type of the blocks.
        bias: [N], fp32 or x's dtype.
        int8_activations: first round each 32 elements of x to int8 with an fp32 scale, as defined
            in `kernels.shared.int8_activations` and done in llama.cpp (which keeps the scale in
            fp16, and rounds 256 elements together for the `_K` types). Integer products and their
            sums within a run of weights that share a scale are then exact.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32. An implementation on tensor cores may round the
            dequantised weight to x's dtype first.

    Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
    """
    y = x.float()
    if int8_activations:
        q, scale = round_to_int8(y, INT8_GROUP)
        y = (q * scale).reshape(x.shape)
    plain = dequantize(fields_together(weight, quant_type), quant_type)
    out = F.linear(y, plain, None if bias is None else bias.float())
    return out.to(x.dtype)
