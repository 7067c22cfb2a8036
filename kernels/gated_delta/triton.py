"""The recurrence with one program per block of a head's values, which keeps its part of the state
in registers."""

from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.gated_delta.reference import EPS
from kernels.shared.recurrent_batch import RecurrentBatch

MAX_K_DIM = 256
"""The most elements of a key."""
BLOCK_V = 16
"""Elements of a value per program."""


@triton.jit
def _gated_delta_kernel(
    qkv_ptr,
    gates_ptr,
    a_log_ptr,
    dt_bias_ptr,
    states_ptr,
    offsets_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    stride,
    gate_stride,
    scale,
    eps,
    K_HEADS: tl.constexpr,
    V_HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    DECAYS: tl.constexpr,
    PADDED_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    key_head = head // (V_HEADS // K_HEADS)
    at_k = tl.arange(0, PADDED_K)
    at_v = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_k, is_v = at_k < K_DIM, at_v < V_DIM
    first, end = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    read = tl.load(reads_ptr + sequence).to(tl.int64)
    write = tl.load(writes_ptr + sequence).to(tl.int64)
    held = is_k[:, None] & is_v[None, :]
    place = head * K_DIM * V_DIM + at_k[:, None] * V_DIM + at_v[None, :]
    size = V_HEADS * K_DIM * V_DIM
    from_slot = states_ptr + tl.maximum(read, 0) * size + place
    state = tl.where(read >= 0, tl.load(from_slot, held, other=0.0), 0.0)
    rate = -tl.exp(tl.load(a_log_ptr + head))
    # One decay for the head, or one for each row of its state.
    at_decay = head * DECAYS + tl.arange(0, PADDED_K if DECAYS > 1 else 1)
    is_decay = at_decay < (head + 1) * DECAYS
    dt_bias = tl.load(dt_bias_ptr + at_decay, is_decay, other=0.0)
    row = first.to(tl.int64)
    for _ in range(first, end):
        at_row = qkv_ptr + row * stride
        q = tl.load(at_row + key_head * K_DIM + at_k, is_k, other=0.0).to(tl.float32)
        k = tl.load(at_row + (K_HEADS + key_head) * K_DIM + at_k, is_k, other=0.0).to(tl.float32)
        values = at_row + 2 * K_HEADS * K_DIM + head * V_DIM
        v = tl.load(values + at_v, is_v, other=0.0).to(tl.float32)
        q = q * (scale / tl.sqrt(tl.sum(q * q, 0) + eps))
        k = k * (1.0 / tl.sqrt(tl.sum(k * k, 0) + eps))
        at_gate = gates_ptr + row * gate_stride
        b = tl.load(at_gate + head).to(tl.float32)
        a = tl.load(at_gate + V_HEADS + at_decay, is_decay, other=0.0).to(tl.float32) + dt_bias
        step = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
        state = state * tl.exp(rate * step)[:, None]
        known = tl.sum(state * k[:, None], 0)
        change = (v - known) / (1.0 + tl.exp(-b))
        state = state + k[:, None] * change[None, :]
        y = tl.sum(state * q[:, None], 0)
        tl.store(
            out_ptr + (row * V_HEADS + head) * V_DIM + at_v, y.to(out_ptr.dtype.element_ty), is_v
        )
        row += 1
    tl.store(states_ptr + write * size + place, state, held)


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
    """Supports CUDA tensors with contiguous rows and keys that are not too long."""
    return (
        _triton.runs_on(qkv, gates, states)
        and qkv.stride(1) == 1
        and gates.stride(1) == 1
        and states.shape[2] <= MAX_K_DIM
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
    out = qkv.new_empty(len(qkv), num_v_heads * v_dim)
    if batch.num_sequences == 0:
        return out
    grid = (batch.num_sequences, num_v_heads, triton.cdiv(v_dim, BLOCK_V))
    _gated_delta_kernel[grid](
        qkv,
        gates,
        a_log,
        dt_bias,
        states,
        batch.cu_seqlens_q,
        batch.read_slots,
        batch.write_slots,
        out,
        qkv.stride(0),
        gates.stride(0),
        k_dim**-0.5,
        EPS,
        K_HEADS=num_k_heads,
        V_HEADS=num_v_heads,
        K_DIM=k_dim,
        V_DIM=v_dim,
        DECAYS=len(dt_bias) // num_v_heads,
        PADDED_K=triton.next_power_of_2(k_dim),
        BLOCK_V=BLOCK_V,
    )
    return out
