"""The gate of a gated MLP with GELU, as in Gemma."""

from torch import Tensor

from kernels import _triton
from kernels.gelu_mul import cases, composed, cpu, reference
from kernels.registry import every_call, op


@op(cases)
def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up`, where gate and up are the two halves of the last dimension.

    The GELU is the approximation by tanh: `x/2 · (1 + tanh(sqrt(2/pi) · (x + 0.044715·x³)))`.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (GEGLU).
    """
    return reference.gelu_mul(gate_up)


gelu_mul.implementation("composed", supports=every_call)(composed.gelu_mul)
gelu_mul.implementation("cpu", supports=cpu.supports)(cpu.gelu_mul)
if _triton.AVAILABLE:
    from kernels.gelu_mul import triton

    gelu_mul.implementation("triton", supports=triton.supports)(triton.gelu_mul)
