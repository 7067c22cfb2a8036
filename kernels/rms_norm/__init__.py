"""Root-mean-square normalisation, alone and fused with the residual addition before it."""

from torch import Tensor

from kernels.registry import op
from kernels.rms_norm import add_cases, cases, composed, cpu, reference


@op(cases)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension: `x / sqrt(mean(x²) + eps) * weight`.

    Args:
        x: [..., C], any float dtype, any strides. Not changed.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.

    Returns:
        [..., C], contiguous, x's dtype. Computed in fp32, rounded once.

    Paper: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    return reference.rms_norm(x, weight, eps)


@op(add_cases)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add a layer's output to the residual stream and normalise the sum.

    Args:
        x: [T, C], what the layer brought. Not changed.
        residual: [T, C], same dtype. Mutated: becomes `residual + x`, rounded to its dtype.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.

    Returns:
        [T, C]: `rms_norm` of the new residual, as rounded.
    """
    return reference.add_rms_norm(x, residual, weight, eps)


rms_norm.implementation("composed", supports=composed.supports)(composed.rms_norm)
add_rms_norm.implementation("composed", supports=composed.supports_add)(composed.add_rms_norm)
rms_norm.implementation("cpu", supports=cpu.supports)(cpu.rms_norm)
add_rms_norm.implementation("cpu", supports=cpu.supports_add)(cpu.add_rms_norm)
