"""Single decoded tokens: a program per split of the keys, and a second launch that joins them."""

from kernels._triton import tl, triton
from kernels.paged_attention.triton_tile import (
    attend_split,
    averaged,
    first_seen,
    joined,
    with_sinks,
)


# The batch decides both, so their values must not specialise kernels.
@triton.jit(do_not_specialize=["table_stride", "num_splits"])
def _paged_attention_decode_kernel(
    q_ptr,
    q_row_stride,
    q_head_stride,
    kv_ptr,
    kv_block_stride,
    scales_ptr,
    scales_block_stride,
    tables_ptr,
    table_stride,
    context_lens_ptr,
    sinks_ptr,
    out_ptr,
    values_ptr,
    weights_ptr,
    num_splits,
    window,
    bend,
    steepness,
    ALIGNED: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one key head's query heads, of one sequence, over one split.

    Grid: (K, sequences, num_splits), with the splits of the longest sequence. A single one writes
    `out` itself, several write [sequences, H, num_splits, D] values and [.., 2] sums and highest
    scores.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    kv_head, sequence, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context_len = tl.load(context_lens_ptr + sequence)
    first_key = first_seen(context_len - 1, window, ALIGNED)
    split = first_key // SPLIT + part
    begin = tl.maximum(split * SPLIT, first_key // BLOCK_N * BLOCK_N)
    end = tl.minimum((split + 1) * SPLIT, context_len)
    if begin >= end:
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    heads = kv_head * GROUP + rows
    inside = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    q = tl.load(
        q_ptr
        + sequence.to(tl.int64) * q_row_stride
        + heads[:, None] * q_head_stride
        + dims[None, :],
        mask=inside,
        other=0.0,
    )
    if scales_ptr is not None:
        scales_ptr += kv_head * BLOCK_SIZE
    query_at = tl.full([BLOCK_M], 0, tl.int32) + (context_len - 1)
    values, total, highest = attend_split(
        q,
        query_at,
        query_at,
        begin,
        end,
        kv_ptr + kv_head * (BLOCK_SIZE * HEAD_DIM),
        kv_block_stride,
        scales_ptr,
        scales_block_stride,
        tables_ptr + sequence.to(tl.int64) * table_stride,
        window,
        bend,
        steepness,
        ALIGNED,
        (PARTS - 1) * NUM_KV_HEADS * BLOCK_SIZE,
        HEAD_DIM,
        BLOCK_SIZE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
    )
    row = sequence.to(tl.int64) * NUM_HEADS + heads
    if values_ptr is None:
        if sinks_ptr is not None:
            sinks = tl.load(sinks_ptr + heads, mask=rows < GROUP, other=0.0)
            total = with_sinks(total, highest, sinks, steepness)
        out = averaged(values, total, scales_ptr is not None)
        target = out_ptr + row[:, None] * HEAD_DIM + dims[None, :]
        tl.store(target, out.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        at = row * num_splits + part
        tl.store(values_ptr + at[:, None] * HEAD_DIM + dims[None, :], values, mask=inside)
        tl.store(weights_ptr + at * 2, tl.max(total, 1), mask=rows < GROUP)
        tl.store(weights_ptr + at * 2 + 1, highest, mask=rows < GROUP)


@triton.jit(do_not_specialize=["num_splits"])
def _paged_attention_join_kernel(
    values_ptr,
    weights_ptr,
    context_lens_ptr,
    sinks_ptr,
    out_ptr,
    num_splits,
    window,
    steepness,
    ALIGNED: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PACKED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Join the splits of one head of one sequence, in their order. Grid: (H, sequences)."""
    NEVER: tl.constexpr = float("-inf")
    head, sequence = tl.program_id(0), tl.program_id(1)
    context_len = tl.load(context_lens_ptr + sequence)
    num_parts = tl.cdiv(context_len, SPLIT) - first_seen(context_len - 1, window, ALIGNED) // SPLIT
    dims = tl.arange(0, BLOCK_D)
    row = sequence.to(tl.int64) * NUM_HEADS + head
    highest = tl.full([1], NEVER, tl.float32)
    total = tl.zeros([1, 1], tl.float32)
    values = tl.zeros([1, BLOCK_D], tl.float32)
    one = tl.arange(0, 1)
    for first in range(0, num_parts, UNROLL):
        # Their loads do not wait for each other.
        for step in tl.static_range(UNROLL):
            part = first + step + one
            there = part < num_parts
            at = row * num_splits + part
            more_values = tl.load(
                values_ptr + at[:, None] * HEAD_DIM + dims[None, :],
                mask=there[:, None] & (dims[None, :] < HEAD_DIM),
                other=0.0,
            )
            more_total = tl.load(weights_ptr + at * 2, mask=there, other=0.0)[:, None]
            more_highest = tl.load(weights_ptr + at * 2 + 1, mask=there, other=NEVER)
            values, total, highest = joined(
                values, total, highest, more_values, more_total, more_highest, steepness
            )
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + head + one)
        total = with_sinks(total, highest, sinks, steepness)
    out = averaged(values, total, PACKED)
    target = out_ptr + row * HEAD_DIM + dims[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=dims[None, :] < HEAD_DIM)
