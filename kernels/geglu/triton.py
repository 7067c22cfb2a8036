"""One pass by the kernel that all gates share."""

from torch import Tensor

from kernels import _triton_gated


def supports(up_gate: Tensor) -> bool:
    """See `kernels._triton_gated.supports`."""
    return _triton_gated.supports(up_gate)


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    return _triton_gated.run(up_gate, "gelu", gate_first=False)
