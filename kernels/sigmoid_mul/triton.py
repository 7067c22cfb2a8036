"""The gate in one pass, by the kernel that all gates share."""

from torch import Tensor

from kernels.shared import triton_gated


def supports(gate_up: Tensor, up: Tensor | None = None) -> bool:
    """See `kernels.shared.triton_gated.supports`."""
    return triton_gated.supports(gate_up)


def sigmoid_mul(gate_up: Tensor, up: Tensor | None = None) -> Tensor:
    """See `kernels.sigmoid_mul`."""
    return triton_gated.run(gate_up, "sigmoid", up)
