"""The gate in one pass, in C++."""

import functools

from torch import Tensor

from kernels import native
from kernels.shared import gated


def supports(up_gate: Tensor) -> bool:
    """See `kernels.shared.gated.supports`."""
    return gated.supports(up_gate)


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    return gated.run(_function(), up_gate)


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_geglu", gated.SIGNATURE)
