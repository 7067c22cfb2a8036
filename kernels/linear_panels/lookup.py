"""Looks up single rows of panels in one call; PyTorch would need ten for a step's few rows."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import native
from kernels.linear_panels.panels import Panels, numbers_of

RowLookup = Callable[[Tensor], Tensor]


def row_lookup(panels: Panels, dtype: torch.dtype) -> RowLookup:
    """Return a function that looks up rows with the bits of `Panels.row_lookup` in the given dtype:
    [T] int64 → [T, C], new memory.

    On a CPU a row number beyond the last row is read as the last one.
    """
    form, data = panels.format, panels.data
    if native.library() is None or not data.is_cpu or not data.is_contiguous():
        look_up = panels.row_lookup()
        return lambda rows: look_up(rows).to(dtype)
    # The offset is subtracted first: the numbers are rounded here as they would be for each weight.
    numbers = numbers_of(form).sub(form.offset)
    numbers_of_panels = (
        *(data.shape[1], form.record_bytes, panels.out_features),
        *(panels.in_features, form.bits, form.scale_type, form.group),
        int(form.has_min),
    )

    def look_up_natively(rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        out = torch.empty(len(rows), panels.in_features, dtype=dtype)
        given = native.DTYPES[dtype], rows.data_ptr(), len(rows), out.data_ptr(), data.data_ptr()
        _function()(*given, *numbers_of_panels, numbers.data_ptr())
        return out

    return look_up_natively


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_panel_rows", "ipippiiiiiiiip")
