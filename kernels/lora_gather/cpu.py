"""Adapters are read once, from front to back, in C++, without copying or widening them first."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import native
from kernels.lora_gather.shard import LoraShard


def supports(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> bool:
    """Supports CPU tensors whose last dimension is contiguous."""
    plain = [shard for shard in shards if not shard.is_packed]
    return (
        native.runs_on(y, x, *(one for shard in plain for one in (shard.a, shard.b)))
        and len(plain) in (0, len(shards))
        and x.stride(1) == y.stride(1) == 1
        and adapter_ids.is_contiguous()
        and adapter_ids.dtype is torch.int32
        and all(shard.are_contiguous() for shard in shards)
    )


def lora_gather(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> None:
    """See `kernels.lora_gather`."""
    num_rows, size = x.shape
    table: list[int] = []
    for shard in shards:
        rank = shard.b.shape[1]
        table += (shard.first, shard.outputs, rank, *(one.data_ptr() for one in shard.arrays))
        table += (one.stride(0) * one.itemsize for one in (shard.a, shard.b))
    _function()(
        native.DTYPES[y.dtype],
        int(any(shard.is_packed for shard in shards)),
        y.data_ptr(),
        y.stride(0),
        x.data_ptr(),
        x.stride(0),
        # A recording of the call keeps the table.
        (ctypes.c_int64 * len(table))(*table),
        len(shards),
        adapter_ids.data_ptr(),
        num_rows,
        size,
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_lora_gather", "iipipipipii")
