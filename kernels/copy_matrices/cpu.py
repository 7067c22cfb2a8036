"""All copies in one call of C++, which takes one thread and leaves Python to others meanwhile."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import native

_BYTES = -1
"""The code of bytes as a type, as in `cpu.cpp`; the order of the table is that of `cpu.cpp`,
too."""
_TYPES = {**native.DTYPES, torch.uint8: _BYTES}


def supports(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Whether all are on the CPU, outs are contiguous, and sources or their transposes are."""
    return (
        native.library() is not None
        and len(outs) == len(sources)
        and all(map(_supports_one, outs, sources))
    )


def _supports_one(out: Tensor, source: Tensor) -> bool:
    return (
        out.is_cpu
        and source.is_cpu
        and out.dtype in _TYPES
        and source.dtype in _TYPES
        and (out.dtype is torch.uint8) is (source.dtype is torch.uint8)
        and out.is_contiguous()
        and (source.is_contiguous() or _is_turned(source))
        and out.shape[1:] == source.shape[1:]
        and len(source) <= len(out)
    )


def _is_turned(source: Tensor) -> bool:
    return source.dim() == 2 and source.dtype is not torch.uint8 and source.mT.is_contiguous()


def copy_matrices(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> int:
    """See `kernels.copy_matrices`."""
    table: list[int] = []
    for out, source in zip(outs, sources, strict=True):
        count = source.numel()
        columns = 0 if source.is_contiguous() else len(source)
        table += (_TYPES[source.dtype], _TYPES[out.dtype], source.data_ptr(), out.data_ptr())
        table += (count, columns, out.numel() - count)
    first_wrong = ctypes.c_int64()
    _function()((ctypes.c_int64 * len(table))(*table), len(outs), ctypes.addressof(first_wrong))
    return first_wrong.value


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_copy_matrices", "pip")
