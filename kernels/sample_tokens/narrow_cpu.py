"""Rows whose steps have an order of their own, in C++: a row per thread, without sorting."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import native
from kernels.sample_tokens.columns import STEPS
from kernels.sample_tokens.cpu import edit_pointers
from kernels.sample_tokens.rows import SamplingRows
from kernels.shared.logit_rows import contiguous_rows

_CODES = {name: code for code, name in enumerate(STEPS, 1)}
"""The values of `Step` in `rows.h`."""


def supports(logits: Tensor) -> bool:
    """Supports logits on the CPU, if the C++ operations are available."""
    return logits.is_cpu and native.library() is not None


def narrow(
    logits: Tensor, rows: SamplingRows, orders: Mapping[int, Sequence[str]]
) -> tuple[Tensor, NDArray[np.float64]]:
    """See `kernels.sample_tokens.ordered.narrow`."""
    logits = contiguous_rows(logits)
    left = logits.clone(memory_format=torch.contiguous_format)
    places = np.array(list(orders), dtype=np.int64)
    steps = np.zeros((len(orders), len(STEPS) + 1), dtype=np.int64)
    for codes, order in zip(steps, orders.values(), strict=True):
        codes[: len(order)] = [_CODES[name] for name in order]
    scales = np.empty(len(orders), dtype=np.float64)
    _function()(
        native.DTYPES[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        rows.table.data_ptr(),
        *edit_pointers(rows.edits),
        places.ctypes.data,
        steps.ctypes.data,
        left.data_ptr(),
        scales.ctypes.data,
        *logits.shape,
        *steps.shape,
    )
    return left, scales


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_narrow_rows", "ipi" + "p" * 13 + "iiii")
