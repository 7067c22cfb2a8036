"""Prompt chunks: a program per tile of query rows, which walks all splits of the keys itself."""

from kernels._triton import tl, triton
from kernels.paged_attention.triton_tile import (
    attend_split,
    averaged,
    first_seen,
    joined,
    with_sinks,
)


# The batch decides the values, so they must not specialise kernels.
@triton.jit(do_not_specialize=["table_stride"])
def _paged_attention_prefill_kernel(
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
    cu_seqlens_q_ptr,
    key_ends_ptr,
    tiles_ptr,
    sinks_ptr,
    out_ptr,
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
    """Compute a tile, whose rows are consecutive queries of one sequence times the heads of one key
    head.

    Grid: (K, tiles). `tiles` [tiles, 2] has each tile's sequence and its first query there.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    kv_head, tile = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tiles_ptr + 2 * tile)
    first_query = tl.load(tiles_ptr + 2 * tile + 1)
    first_row = tl.load(cu_seqlens_q_ptr + sequence)
    num_queries = tl.load(cu_seqlens_q_ptr + sequence + 1) - first_row
    num_cached = tl.load(context_lens_ptr + sequence) - num_queries

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    queries = first_query + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    last_query = tl.minimum(first_query + QUERIES, num_queries) - 1
    inside = (queries <= last_query)[:, None] & (dims[None, :] < HEAD_DIM)
    token = (first_row + queries).to(tl.int64)
    q = tl.load(
        q_ptr + (token * q_row_stride + heads * q_head_stride)[:, None] + dims[None, :],
        mask=inside,
        other=0.0,
    )
    kv_ptr += kv_head * (BLOCK_SIZE * HEAD_DIM)
    if scales_ptr is not None:
        scales_ptr += kv_head * BLOCK_SIZE
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    first_key = first_seen(num_cached + first_query, window, ALIGNED)
    query_at = num_cached + queries
    sees_to = query_at
    last_key = num_cached + last_query
    if key_ends_ptr is not None:
        sees_to = tl.load(key_ends_ptr + token, mask=queries <= last_query, other=0) - 1
        last_key = tl.load(key_ends_ptr + first_row + last_query) - 1
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M, 16], tl.float32)
    values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in range(first_key // SPLIT, last_key // SPLIT + 1):
        more_values, more_total, more_highest = attend_split(
            q,
            query_at,
            sees_to,
            tl.maximum(split * SPLIT, first_key // BLOCK_N * BLOCK_N),
            tl.minimum((split + 1) * SPLIT, last_key + 1),
            kv_ptr,
            kv_block_stride,
            scales_ptr,
            scales_block_stride,
            table_ptr,
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
        values, total, highest = joined(
            values, total, highest, more_values, more_total, more_highest, steepness
        )
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + heads)
        total = with_sinks(total, highest, sinks, steepness)
    out = averaged(values, total, scales_ptr is not None)
    target = out_ptr + (token * NUM_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=inside)
