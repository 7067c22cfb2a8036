"""Rounds the matrices of many adapters to 8 bits in one call.

An adapter has hundreds of small matrices, and each operation on a tensor from a second thread may
have to wait until the first thread releases Python.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import native
from kernels.lora_gather.packed import chunk_bytes, num_chunks, pack

MAX_RANK = 256
"""The largest rank, as in `pack.cpp`."""

Pair = tuple[Tensor, Tensor]
"""A, [r, K], and B, [r, N]; or both packed."""


def pack_each(pairs: Sequence[Pair]) -> list[Pair]:
    """Pack each pair with the same bits as `pack`. All pairs are of one dtype."""
    if not all(_is_supported(a, b, pairs[0][0].dtype) for a, b in pairs):
        return [pack(a, b) for a, b in pairs]
    packed: list[Pair] = []
    table: list[int] = []
    for a, b in pairs:
        (rank, inputs), outputs = a.shape, b.shape[1]
        chunks = num_chunks(rank)
        both = (
            torch.empty(chunks, chunk_bytes(inputs), dtype=torch.uint8),
            torch.empty(chunks, chunk_bytes(outputs), dtype=torch.uint8),
        )
        packed.append(both)
        table += (a.data_ptr(), b.data_ptr(), rank, inputs, outputs)
        table += (both[0].data_ptr(), both[1].data_ptr())
    if pairs:
        dtype = native.DTYPES[pairs[0][0].dtype]
        _function()(dtype, (ctypes.c_int64 * len(table))(*table), len(pairs))
    return packed


def _is_supported(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return (
        a.dtype is dtype
        and native.runs_on(a, b)
        and a.dim() == b.dim() == 2
        and len(a) == len(b) <= MAX_RANK
        and a.is_contiguous()
        and b.is_contiguous()
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_lora_pack", "ipi")
