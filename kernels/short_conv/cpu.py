"""Channels of sequences divided over threads, in C++."""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.shared.recurrent_batch import RecurrentBatch


def supports(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
) -> bool:
    """Supports CPU tensors with contiguous rows."""
    return x.stride(1) == 1 and weight.is_contiguous() and native.runs_on(x, states)


def short_conv(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """See `kernels.short_conv`."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        states.data_ptr(),
        batch.cu_seqlens_q.data_ptr(),
        batch.read_slots.data_ptr(),
        batch.write_slots.data_ptr(),
        out.data_ptr(),
        batch.num_sequences,
        *weight.shape,
        int(silu),
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_short_conv", "ipippppppp" + "iiii")
