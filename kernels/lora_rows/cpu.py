"""Updates in C++, with the positions of all rows divided among the threads."""

import ctypes
import functools
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kernels import native
from kernels.lora_rows.updates import RowUpdates

_Entry = tuple[int, ...]

_entries: "WeakKeyDictionary[RowUpdates, _Entry | None]" = WeakKeyDictionary()


def supports(y: Tensor, x: Tensor, updates: Sequence[RowUpdates]) -> bool:
    """Supports contiguous fp32 tensors on the CPU with transposed weights."""
    return (
        y.dtype is torch.float32
        and native.runs_on(y, x)
        and y.is_contiguous()
        and x.is_contiguous()
        and all(_entry(one) is not None for one in updates)
    )


def lora_rows(y: Tensor, x: Tensor, updates: Sequence[RowUpdates]) -> None:
    """See `kernels.lora_rows`."""
    num_rows, num_positions, num_inputs = x.shape
    table: list[int] = []
    for one in updates:
        entry = _entry(one)
        assert entry is not None, "supported"
        table += entry
    _function()(
        y.data_ptr(),
        x.data_ptr(),
        # A recording of the call keeps the table.
        (ctypes.c_int64 * len(table))(*table),
        len(updates),
        num_rows,
        num_positions,
        num_inputs,
        y.shape[2],
    )


def _entry(updates: RowUpdates) -> _Entry | None:
    """Return the row of the table for an update; None if it is not supported. Rows are kept,
    because reading a tensor's properties takes as long as adding some of its rows."""
    if updates not in _entries:
        a, b, rows, scales = updates.a, updates.b, updates.rows, updates.scales
        weights = a.t(), b.t()
        is_turned = all(
            one.is_cpu and one.dtype is torch.float32 and one.is_contiguous() for one in weights
        )
        arrays = (one.data_ptr() for one in (a, b, rows, scales))
        _entries[updates] = (len(a), len(rows), *arrays) if is_turned else None
    return _entries[updates]


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_lora_rows", "pppiiiii")
