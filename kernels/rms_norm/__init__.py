"""Root-mean-square normalisation, alone and fused with the residual addition before it."""

from torch import Tensor

from kernels import _triton
from kernels.registry import every_call, op
from kernels.rms_norm import add_cases, cases, composed, cpu, reference


@op(cases)
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """Normalise the last dimension: `x / sqrt(mean(x²) + eps) * (offset + weight)`.

    Args:
        x: [..., C], any float dtype, any strides. Not changed.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.
        offset: added to the weights; Gemma stores them minus 1.

    Returns:
        [..., C], contiguous, x's dtype. Computed in fp32, rounded once. A row's result depends on
            the row alone.

    Paper: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    return reference.rms_norm(x, weight, eps, offset=offset)


@op(add_cases)
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """Add a layer's output to the residual stream and normalise the sum.

    Args:
        x: [T, C], the layer's output. Not changed.
        residual: [T, C], same dtype. Mutated: becomes `residual + x`, rounded to its dtype.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.
        offset: added to the weights.

    Returns:
        [T, C]: `rms_norm` of the new residual after rounding.
    """
    return reference.add_rms_norm(x, residual, weight, eps, offset=offset)


rms_norm.implementation("composed", supports=every_call)(composed.rms_norm)
add_rms_norm.implementation("composed", supports=every_call)(composed.add_rms_norm)
rms_norm.implementation("cpu", supports=cpu.supports)(cpu.rms_norm)
add_rms_norm.implementation("cpu", supports=cpu.supports_add)(cpu.add_rms_norm)
if _triton.AVAILABLE:
    from kernels.rms_norm import triton

    rms_norm.implementation("triton", supports=triton.supports)(triton.rms_norm)
    add_rms_norm.implementation("triton", supports=triton.supports_add)(triton.add_rms_norm)
