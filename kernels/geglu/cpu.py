"""One pass, in C++."""

import functools

from torch import Tensor

from kernels import gated, native


def supports(up_gate: Tensor) -> bool:
    """See `kernels.gated.supports`."""
    return gated.supports(up_gate)


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    return gated.run(_function(), up_gate)


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_geglu", gated.SIGNATURE)
