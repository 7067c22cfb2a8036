"""Multiplication by a weight in bitsandbytes' 4-bit numbers: NormalFloat, or small floats."""

from torch import Tensor

from kernels import _triton
from kernels.linear_nf4 import cases, composed, reference
from kernels.linear_nf4.reference import resolve_absmax
from kernels.registry import op


@op(cases)
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
    """Multiply rows by an NF4 weight: `x @ dequantize(weight).T + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: uint8, contiguous, in any shape: the weight's elements row by row, two to a byte,
            the first in the high four bits; each an index into
            `kernels.shared.four_bit_numbers.NF4`.
        absmax: [ceil(N K / block_size)] fp32, the factor of each block's numbers. Where the
            checkpoint has quantised these too, `resolve_absmax` computes them.
        block_size: consecutive elements that share a magnitude; blocks may reach across rows.
        shape: (N, K).
        bias: [N], fp32 or x's dtype.
        fp4: whether the indices are into `FP4`.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32. An implementation on tensor cores may round the
            dequantised weight to x's dtype first.

    Paper: Dettmers et al. 2023, arXiv:2305.14314, sections 3 and E.
    """
    return reference.linear_nf4(x, weight, absmax, block_size, shape, bias, fp4=fp4)


linear_nf4.implementation("composed", supports=composed.supports)(composed.linear_nf4)
if _triton.AVAILABLE:
    from kernels.linear_nf4 import triton as triton_nf4

    linear_nf4.implementation("triton", supports=triton_nf4.supports)(triton_nf4.linear_nf4)

__all__ = ["linear_nf4", "resolve_absmax"]
