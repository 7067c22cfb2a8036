"""The scan with one program per block of a state's rows, which keeps them in registers."""

from math import inf

from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.shared.recurrent_batch import RecurrentBatch

MAX_SIZE = 256
"""The most elements of a state's row."""
BLOCK_ELEMENTS = 2048
"""Elements of the states of one program."""


@triton.jit
def _selective_scan_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    dt_bias_ptr,
    states_ptr,
    offsets_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    least,
    greatest,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
    PER_GROUP: tl.constexpr,
    HAS_MATRIX: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A program has BLOCK channels: some of one head, or with one channel per head some heads of
    # one group.
    sequence, block = tl.program_id(0), tl.program_id(1)
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    at_n = tl.arange(0, PADDED_SIZE)
    if HEAD_DIM == 1:
        channel = block * BLOCK + tl.arange(0, BLOCK)
        is_channel = channel < CHANNELS
        group = block * BLOCK // PER_GROUP
        head = channel
    else:
        PER_HEAD: tl.constexpr = (HEAD_DIM + BLOCK - 1) // BLOCK
        of_head = block % PER_HEAD * BLOCK + tl.arange(0, BLOCK)
        is_channel = of_head < HEAD_DIM
        channel = block // PER_HEAD * HEAD_DIM + of_head
        group = block // PER_HEAD // PER_GROUP
        head = tl.full((BLOCK,), 0, tl.int32) + block // PER_HEAD
    is_n = at_n < SIZE
    first, end = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    read = tl.load(reads_ptr + sequence).to(tl.int64)
    write = tl.load(writes_ptr + sequence).to(tl.int64)
    held = is_channel[:, None] & is_n[None, :]
    place = channel[:, None] * SIZE + at_n[None, :]
    from_slot = states_ptr + tl.maximum(read, 0) * CHANNELS * SIZE + place
    state = tl.where(read >= 0, tl.load(from_slot, held, other=0.0), 0.0)
    if HAS_MATRIX:
        a = tl.load(a_ptr + head[:, None] * SIZE + at_n[None, :], held, other=0.0)
    else:
        a = tl.load(a_ptr + head, is_channel, other=0.0)[:, None]
    d = tl.load(d_ptr + head, is_channel, other=0.0)
    dt_bias = tl.load(dt_bias_ptr + head, is_channel, other=0.0)
    row = first.to(tl.int64)
    for _ in range(first, end):
        x = tl.load(x_ptr + row * x_stride + channel, is_channel, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr + row * dt_stride + head, is_channel, other=0.0).to(tl.float32)
        at_group = group * SIZE + at_n
        b = tl.load(b_ptr + row * b_stride + at_group, is_n, other=0.0).to(tl.float32)
        c = tl.load(c_ptr + row * c_stride + at_group, is_n, other=0.0).to(tl.float32)
        dt = dt + dt_bias
        # log(1 + exp(dt)), where exp(dt) may be too small to change 1.
        e = tl.exp(tl.minimum(dt, 20.0))
        one_more = 1.0 + e
        log = tl.where(one_more == 1.0, e, tl.log(one_more) * (e / (one_more - 1.0)))
        step = tl.where(dt > 20.0, dt, log)
        step = tl.minimum(tl.maximum(step, least), greatest)
        state = state * tl.exp(step[:, None] * a) + (step * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], 1) + d * x
        tl.store(out_ptr + row * CHANNELS + channel, y.to(out_ptr.dtype.element_ty), is_channel)
        row += 1
    tl.store(states_ptr + write * CHANNELS * SIZE + place, state, held)


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
    """Supports CUDA tensors with contiguous rows and states that are not too wide; heads of one
    channel are in one group."""
    return (
        _triton.runs_on(x, dt, b, c, states)
        and all(rows.stride(1) == 1 for rows in (x, dt, b, c))
        and states.shape[3] <= MAX_SIZE
        and (states.shape[2] > 1 or b.shape[1] == states.shape[3])
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
    out = x.new_empty(x.shape)
    if batch.num_sequences == 0:
        return out
    padded_size = triton.next_power_of_2(size)
    block = max(1, BLOCK_ELEMENTS // padded_size)
    if head_dim == 1:
        num_blocks = triton.cdiv(num_heads, block)
    else:
        block = min(block, triton.next_power_of_2(head_dim))
        num_blocks = num_heads * triton.cdiv(head_dim, block)
    _selective_scan_kernel[(batch.num_sequences, num_blocks)](
        x,
        dt,
        b,
        c,
        a,
        d,
        dt_bias,
        states,
        batch.cu_seqlens_q,
        batch.read_slots,
        batch.write_slots,
        out,
        x.stride(0),
        dt.stride(0),
        b.stride(0),
        c.stride(0),
        float(dt_limits[0]),
        float(dt_limits[1]),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        SIZE=size,
        PER_GROUP=num_heads // (b.shape[1] // size),
        HAS_MATRIX=a.dim() == 2,
        PADDED_SIZE=padded_size,
        BLOCK=block,
    )
    return out
