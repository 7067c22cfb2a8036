"""Rows divided over threads, in C++; every decision has the bits of the reference's."""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.sample_tokens.rows import LogitEdits, SampledTokens, SamplingRows
from kernels.shared.logit_rows import contiguous_rows


def supports(logits: Tensor, rows: SamplingRows) -> bool:
    """Supports logits on the CPU, if the C++ operations are available."""
    return logits.is_cpu and native.library() is not None


def sample_tokens(logits: Tensor, rows: SamplingRows) -> SampledTokens:
    """See `kernels.sample_tokens`."""
    logits = contiguous_rows(logits)
    num_rows, num_tokens = logits.shape
    token_ids, errors, num_kept = torch.empty(3, num_rows, dtype=torch.int64).unbind()
    masses = torch.empty(num_rows, 2, dtype=torch.int64)
    _function()(
        native.DTYPES[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        rows.table.data_ptr(),
        *edit_pointers(rows.edits),
        token_ids.data_ptr(),
        errors.data_ptr(),
        num_kept.data_ptr(),
        masses.data_ptr(),
        num_rows,
        num_tokens,
    )
    return SampledTokens(token_ids=token_ids, errors=errors, num_kept=num_kept, masses=masses)


def edit_pointers(edits: LogitEdits | None) -> list[int | None]:
    """Return the addresses of the arrays of edits for the C++ operations."""
    names = LogitEdits.__dataclass_fields__
    if edits is None:
        return [None] * len(names)
    return [getattr(edits, name).data_ptr() for name in names]


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_sample_tokens", "ipi" + "p" * 13 + "ii")
