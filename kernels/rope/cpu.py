"""One pass in place, in C++."""

import functools

from torch import Tensor

from kernels import native


def supports(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """CPU tensors whose heads are contiguous."""
    return x.stride(2) == 1 and cos.is_contiguous() and sin.is_contiguous() and native.runs_on(x)


def rope_inplace(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `kernels.rope`."""
    tokens, heads, dim = x.shape
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        cos.data_ptr(),
        sin.data_ptr(),
        tokens,
        heads,
        dim,
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_rope_inplace", "ipiippiii")
