"""The gate of a gated MLP in diffusion transformers and UNets."""

from torch import Tensor

from kernels import _triton
from kernels.geglu import cases, composed, cpu, reference
from kernels.registry import every_call, op


@op(cases)
def geglu(up_gate: Tensor) -> Tensor:
    """`up * gelu(gate)`, where up and gate are the two halves of the last dimension.

    The order is that of diffusers, and the GELU is the exact one, with the error function.

    Args:
        up_gate: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (GEGLU).
    """
    return reference.geglu(up_gate)


geglu.implementation("composed", supports=every_call)(composed.geglu)
geglu.implementation("cpu", supports=cpu.supports)(cpu.geglu)
if _triton.AVAILABLE:
    from kernels.geglu import triton

    geglu.implementation("triton", supports=triton.supports)(triton.geglu)
