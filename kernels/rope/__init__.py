"""Rotary position embedding, applied in place to the query and key heads."""

from torch import Tensor

from kernels.registry import op
from kernels.rope import cases, composed, cpu, reference


@op(cases)
def rope_inplace(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate each head's pairs (i, i + D/2) by its token's angles.

        x[..., :D/2], x[..., D/2:]  ←  x1·cos - x2·sin,  x2·cos + x1·sin

    Args:
        x: [T, H, D], any float dtype; heads may be strided (a view of packed q, k, v). Mutated.
            Query and key heads that lie side by side are rotated by one call.
        cos: [T, 1, D] fp32; both halves hold the same cosines.
        sin: [T, 1, D] fp32; the first half is negated, so that the rotation is
            `x * cos + swap_halves(x) * sin`.

    Computed in fp32, rounded once.

    Paper: RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34, with the halves instead of
    neighbours paired, as in Hugging Face checkpoints.
    """
    reference.rope_inplace(x, cos, sin)


rope_inplace.implementation("composed", supports=composed.supports)(composed.rope_inplace)
rope_inplace.implementation("cpu", supports=cpu.supports)(cpu.rope_inplace)
