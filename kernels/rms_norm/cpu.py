"""The norm in one pass over each row, in C++."""

import functools

import torch
from torch import Tensor

from kernels import native


def supports(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> bool:
    """Supports CPU tensors of two dimensions whose last one is contiguous."""
    return x.dim() == 2 and x.stride(1) == 1 and native.runs_on(x) and weight.is_contiguous()


def supports_add(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> bool:
    """Supports the tensors that `supports` does, for both inputs."""
    return supports(x, weight, eps) and residual.stride(1) == 1 and native.runs_on(x, residual)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See `kernels.rms_norm`."""
    return _run(x, None, weight, eps, offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """See `kernels.rms_norm`."""
    return _run(x, residual, weight, eps, offset)


def _run(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float) -> Tensor:
    rows, size = x.shape
    out = torch.empty((rows, size), dtype=x.dtype)
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        None if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        native.DTYPES[weight.dtype],
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        size,
        eps,
        offset,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_rms_norm", "ipipiippiiff")
