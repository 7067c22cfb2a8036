"""The common part of decode and prefill: a tile of query rows that goes over one split of the keys.

A split is SPLIT keys at fixed positions of the sequence, cut into tiles of BLOCK_N. Within a split
a row's weights and sums grow tile by tile (Milakov and Gimelshein 2018, arXiv:1805.02867); the
splits' results are then joined in their order, by `joined`. Decodes do that in two launches and
prompt chunks in one, with the same operations on the same numbers, so a token gets the same bits
alone or in a batch, decoded or in a chunk, whatever was cached before. For that:

- a tile in which a row sees nothing must leave the row unchanged: weights are exactly 0 and the
  factor for earlier sums is exactly 1;
- weights are summed by the tensor cores, as a product with ones. `tl.sum` adds in an order that
  depends on how the tile is distributed over threads;
- compilers must not fuse multiplications and additions as they like: `enable_fp_fusion=False`.

Tensor cores multiply fp32 inputs in three parts (tf32x3): with fp32 arithmetic, these kernels would
keep thousands of numbers per thread in memory.

Papers: Flash-Decoding, Dao et al. 2023; FlashAttention-2, Dao 2023, arXiv:2307.08691.
"""

from kernels._triton import tl, triton


@triton.jit
def attend_split(
    q,
    query_at,
    sees_to,
    begin,
    end,
    kv_ptr,
    kv_block_stride,
    scales_ptr,
    scales_block_stride,
    table_ptr,
    window,
    bend,
    steepness,
    ALIGNED: tl.constexpr,
    VALUES_AT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Process the keys from `begin` to `end` of one head, for rows at positions `query_at` that see
    keys up to `sees_to`.

    Pointers are to the sequence's block table and to the head's first slot in block 0; its values
    are VALUES_AT slots further on. Returns
    weighted values [M, D], their weights' sum [M, 16] (equal columns) and the highest score [M];
    weights are `2 ** (steepness * (score - highest))`. Packed values are PACKED_UNIT times too
    large.
    """
    NEVER: tl.constexpr = float("-inf")
    dims = tl.arange(0, BLOCK_D)
    highest = tl.full([BLOCK_M], NEVER, tl.float32)
    total = tl.zeros([BLOCK_M, 16], tl.float32)
    values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    ones = tl.full([BLOCK_N, 16], 1.0, q.dtype)
    for start in range(begin, end, BLOCK_N):
        key_at = start + tl.arange(0, BLOCK_N)
        # Past the end the last key is read again, so that no unknown memory is read.
        held = tl.minimum(key_at, end - 1)
        block = tl.load(table_ptr + held // BLOCK_SIZE).to(tl.int64)
        slot = held % BLOCK_SIZE
        rows = kv_ptr + block * kv_block_stride + slot * HEAD_DIM
        k = widened(load_rows(rows, dims, HEAD_DIM, BLOCK_D), q.dtype)
        score = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        if scales_ptr is not None:
            scales = scales_ptr + block * scales_block_stride + slot
            score = score * tl.load(scales)[None, :]
        if bend is not None:
            # tanh(x) = 1 - 2 / (1 + e**2x)
            score = 1.0 - 2.0 / (1.0 + tl.exp2(score * bend))
        visible = key_at[None, :] <= sees_to[:, None]
        if ALIGNED:
            visible = visible & (key_at[None, :] >= (query_at // window * window)[:, None])
        elif window is not None:
            visible = visible & (key_at[None, :] > query_at[:, None] - window)
        score = tl.where(visible, score, NEVER)

        higher = tl.maximum(highest, tl.max(score, 1))
        base = tl.where(higher == NEVER, 0.0, higher)
        shrink = tl.exp2((highest - base) * steepness)
        # A fused multiply-add; (score - base) * steepness would cost twice as much.
        weight = tl.exp2(tl.fma(score, steepness, -(base * steepness)[:, None]))
        highest = higher
        total = tl.dot(weight.to(q.dtype), ones, total * shrink[:, None], input_precision="tf32x3")
        v = load_rows(rows + VALUES_AT * HEAD_DIM, dims, HEAD_DIM, BLOCK_D)
        if scales_ptr is not None:
            v_scale = tl.load(scales + VALUES_AT)
            weight = weight * (v_scale * PACKED_UNIT)[None, :]
        values = tl.dot(
            weight.to(q.dtype),
            widened(v, q.dtype),
            values * shrink[:, None],
            input_precision="tf32x3",
        )
    return values, total, highest


@triton.jit
def first_seen(position, window, ALIGNED: tl.constexpr):
    """Return the first key that a query at this position sees."""
    first = position * 0
    if ALIGNED:
        first = position // window * window
    elif window is not None:
        first = tl.maximum(position + 1 - window, 0)
    return first


PACKED_UNIT = tl.constexpr(64.0)
"""A factor that keeps weights times scales among fp16's normal numbers: a scale is a head's largest
value / 127 or / 448. It is a power of two, so nothing is rounded."""


@triton.jit
def joined(values, total, highest, more_values, more_total, more_highest, steepness):
    """Join the results of earlier splits [R, D], [R, any], [R] with those of the next one, in this
    order."""
    higher = tl.maximum(highest, more_highest)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    old = tl.exp2((highest - base) * steepness)[:, None]
    new = tl.exp2((more_highest - base) * steepness)[:, None]
    return values * old + more_values * new, total * old + more_total * new, higher


@triton.jit
def with_sinks(total, highest, sinks, steepness):
    """Add to each row's sum of weights a key with the value 0 and a score of `sinks` [R]. Infinity,
    for a score far above all others, makes the row 0."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    score = sinks * (LOG2_E / steepness)
    return total + tl.exp2((score - highest) * steepness)[:, None]


@triton.jit
def averaged(values, total, PACKED: tl.constexpr):
    """Divide by the weights' sum [R, any]; rows that saw nothing become 0."""
    total = tl.max(total, 1)
    if PACKED:
        total = total * PACKED_UNIT
    return values / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def load_rows(rows, dims, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load [len(rows), BLOCK_D]; zeros from HEAD_DIM on."""
    if HEAD_DIM == BLOCK_D:
        return tl.load(rows[:, None] + dims[None, :])
    return tl.load(rows[:, None] + dims[None, :], mask=dims[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def widened(x, dtype: tl.constexpr):
    """Convert packed numbers to q's dtype, exactly for int8 and float8_e4m3fn.

    uint8 are the bits of float8_e4m3fn on GPUs without that type. Shifted to fp16's exponent and
    mantissa they are 2**8 too small, including denormal ones.
    """
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    return x.to(dtype)
