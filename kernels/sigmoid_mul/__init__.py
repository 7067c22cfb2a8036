"""The gate of attention whose output is gated."""

from torch import Tensor

from kernels import _triton
from kernels.registry import op
from kernels.sigmoid_mul import cases, composed, cpu, reference


@op(cases)
def sigmoid_mul(gate_up: Tensor) -> Tensor:
    """`sigmoid(gate) * up`, where gate and up are the two halves of the last dimension.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: Shazeer 2020, arXiv:2002.05202, equation 4 (GLU).
    """
    return reference.sigmoid_mul(gate_up)


sigmoid_mul.implementation("composed", supports=composed.supports)(composed.sigmoid_mul)
sigmoid_mul.implementation("cpu", supports=cpu.supports)(cpu.sigmoid_mul)
if _triton.AVAILABLE:
    from kernels.sigmoid_mul import triton

    sigmoid_mul.implementation("triton", supports=triton.supports)(triton.sigmoid_mul)
