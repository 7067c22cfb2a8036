"""The gate in one pass, by the kernel that all gates share."""

from torch import Tensor

from kernels.shared import triton_gated


def supports(gate_up: Tensor, up: Tensor | None = None) -> bool:
    """See `kernels.shared.triton_gated.supports`."""
    return triton_gated.supports(gate_up)


def silu_mul(gate_up: Tensor, up: Tensor | None = None) -> Tensor:
    """See `kernels.silu_mul`."""
    return triton_gated.run(gate_up, "silu", up)
