"""The gate in one pass, in C++."""

import functools

from torch import Tensor

from kernels import native
from kernels.shared import gated


def supports(gate_up: Tensor, up: Tensor | None = None) -> bool:
    """See `kernels.shared.gated.supports`."""
    return gated.supports(gate_up, up)


def sigmoid_mul(gate_up: Tensor, up: Tensor | None = None) -> Tensor:
    """See `kernels.sigmoid_mul`."""
    return gated.run(_function(), gate_up, up)


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_sigmoid_mul", gated.SIGNATURE)
