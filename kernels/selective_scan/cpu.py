"""Heads of sequences divided over threads, in C++."""

import functools
from math import inf

import torch
from torch import Tensor

from kernels import native
from kernels.shared.recurrent_batch import RecurrentBatch


def supports(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    dt_limits: tuple[float, float] = (0.0, inf),
) -> bool:
    """Supports CPU tensors with contiguous rows."""
    return (
        all(rows.stride(1) == 1 for rows in (x, dt, b, c))
        and native.runs_on(x, dt, b, c)
        and native.runs_on(states, a, d, dt_bias)
    )


def selective_scan(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    dt_limits: tuple[float, float] = (0.0, inf),
) -> Tensor:
    """See `kernels.selective_scan`."""
    _, num_heads, head_dim, size = states.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    strided = [part for rows in (x, dt, b, c) for part in (rows.data_ptr(), rows.stride(0))]
    _function()(
        native.DTYPES[x.dtype],
        *strided,
        a.data_ptr(),
        a.dim() == 2,
        d.data_ptr(),
        dt_bias.data_ptr(),
        *dt_limits,
        states.data_ptr(),
        batch.cu_seqlens_q.data_ptr(),
        batch.read_slots.data_ptr(),
        batch.write_slots.data_ptr(),
        out.data_ptr(),
        batch.num_sequences,
        num_heads,
        head_dim,
        size,
        b.shape[1] // size,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_selective_scan", "ipipipipipippffpppppiiiii")
