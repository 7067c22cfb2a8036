"""Dot products of each row with its adapter's, in C++: nothing is copied or widened before."""

import functools

import torch
from torch import Tensor

from kernels import native


def supports(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> bool:
    """CPU tensors whose last dimension is contiguous."""
    return (
        native.runs_on(y, x, a, b)
        and x.stride(1) == y.stride(1) == 1
        and all(one.is_contiguous() for one in (a, b, adapter_ids, scales))
        and adapter_ids.dtype is torch.int32
    )


def lora_gather(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> None:
    """See `kernels.lora_gather`."""
    num_rows, size = x.shape
    _function()(
        native.DTYPES[y.dtype],
        y.data_ptr(),
        y.stride(0),
        x.data_ptr(),
        x.stride(0),
        a.data_ptr(),
        b.data_ptr(),
        adapter_ids.data_ptr(),
        scales.data_ptr(),
        num_rows,
        y.shape[1],
        size,
        a.shape[1],
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_lora_gather", "ipipippppiiii")
