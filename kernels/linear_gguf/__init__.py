"""Multiplication by a matrix that keeps the bytes that it has in a GGUF file."""

from torch import Tensor

from kernels import _triton
from kernels.linear_gguf import cases, composed, reference
from kernels.linear_gguf.fields import fields_apart
from kernels.linear_gguf.quant_type import GGUFType
from kernels.registry import every_call, op


@op(cases)
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
    return reference.linear_gguf(x, weight, quant_type, bias, int8_activations=int8_activations)


linear_gguf.implementation("composed", supports=every_call)(composed.linear_gguf)
if _triton.AVAILABLE:
    from kernels.linear_gguf import triton as triton_gguf

    linear_gguf.implementation("triton", supports=triton_gguf.supports)(triton_gguf.linear_gguf)

__all__ = ["GGUFType", "fields_apart", "linear_gguf"]
