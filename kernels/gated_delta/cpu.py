"""Heads of sequences divided over threads, in C++."""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.shared.recurrent_batch import RecurrentBatch


def supports(
    qkv: Tensor,
    gates: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a_log: Tensor,
    dt_bias: Tensor,
    num_k_heads: int,
) -> bool:
    """Supports CPU tensors with contiguous rows."""
    return (
        qkv.stride(1) == 1
        and gates.stride(1) == 1
        and native.runs_on(qkv, gates)
        and native.runs_on(states, a_log, dt_bias)
    )


def gated_delta(
    qkv: Tensor,
    gates: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a_log: Tensor,
    dt_bias: Tensor,
    num_k_heads: int,
) -> Tensor:
    """See `kernels.gated_delta`."""
    _, num_v_heads, k_dim, v_dim = states.shape
    out = torch.empty(len(qkv), num_v_heads * v_dim, dtype=qkv.dtype)
    _function()(
        native.DTYPES[qkv.dtype],
        qkv.data_ptr(),
        qkv.stride(0),
        gates.data_ptr(),
        gates.stride(0),
        a_log.data_ptr(),
        dt_bias.data_ptr(),
        len(dt_bias) // num_v_heads,
        states.data_ptr(),
        batch.cu_seqlens_q.data_ptr(),
        batch.read_slots.data_ptr(),
        batch.write_slots.data_ptr(),
        out.data_ptr(),
        batch.num_sequences,
        num_k_heads,
        num_v_heads,
        k_dim,
        v_dim,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_gated_delta", "ipipippipppppiiiii")
