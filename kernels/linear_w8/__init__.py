"""Multiplication by an 8-bit weight that has a scale per output."""

from torch import Tensor

from kernels import _triton
from kernels.linear_w8 import cases, composed, reference
from kernels.registry import every_call, op


@op(cases)
def linear_w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """Multiply rows by an int8 weight: `x @ weight.T * scale + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: [N, K] int8, contiguous; all of -128 ... 127.
        scale: [N] fp32.
        bias: [N], fp32 or x's dtype.
        int8_activations: first round each row of x to int8 with a scale of its own, as defined in
            `kernels.shared.int8_activations`. Products and sums are then exact in int32, so the
            order of the sum does not matter; K <= 131071 keeps them below 2^31. The result is `sum
            * row scale * scale + bias` in fp32, from the left.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32.

    Paper: Dettmers et al. 2022, arXiv:2208.07339, section 2 (vector-wise quantisation, without its
    outliers).
    """
    return reference.linear_w8(x, weight, scale, bias, int8_activations=int8_activations)


linear_w8.implementation("composed", supports=every_call)(composed.linear_w8)
if _triton.AVAILABLE:
    from kernels.linear_w8 import triton as triton_w8

    linear_w8.implementation("triton", supports=triton_w8.supports)(triton_w8.linear_w8)
