"""The gate in one pass, by the kernel that all gates share."""

from torch import Tensor

from kernels.shared import triton_gated


def supports(up_gate: Tensor) -> bool:
    """See `kernels.shared.triton_gated.supports`."""
    return triton_gated.supports(up_gate)


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    return triton_gated.run(up_gate, "gelu", gate_first=False)
