"""The gate of a gated MLP."""

from torch import Tensor

from kernels import _triton
from kernels.registry import every_call, op
from kernels.silu_mul import cases, composed, cpu, reference


@op(cases)
def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, where gate and up are the two halves of the last dimension.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (SwiGLU).
    """
    return reference.silu_mul(gate_up)


silu_mul.implementation("composed", supports=every_call)(composed.silu_mul)
silu_mul.implementation("cpu", supports=cpu.supports)(cpu.silu_mul)
if _triton.AVAILABLE:
    from kernels.silu_mul import triton

    silu_mul.implementation("triton", supports=triton.supports)(triton.silu_mul)
