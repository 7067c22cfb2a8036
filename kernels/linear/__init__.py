"""Multiplication by plain weights."""

from torch import Tensor

from kernels import _triton
from kernels.linear import cases, composed, reference
from kernels.registry import op


@op(cases)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> Tensor:
    """Compute `x @ weight.T + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: [N, K], x's dtype, contiguous.
        bias: [N], fp32 or x's dtype.
        fp32_out: return the unrounded sums. Logits need this: bf16 numbers between 16 and 32 are an
            eighth apart.
        invariant: a row's result has the same bits whatever the other rows are. Vendors' libraries,
            which run otherwise, choose the order of their sums by the number of rows.

    Returns:
        [M, N], contiguous, x's dtype or fp32. Sums in fp32, rounded once.
    """
    return reference.linear(x, weight, bias, fp32_out=fp32_out, invariant=invariant)


linear.implementation("composed", supports=composed.supports)(composed.linear)
if _triton.AVAILABLE:
    from kernels.linear import triton

    linear.implementation("triton", supports=triton.supports)(triton.linear)
