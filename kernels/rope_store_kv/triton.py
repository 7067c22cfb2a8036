"""The op with one program for some heads of one kind (query, key or value) of one token."""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton

BLOCK_HEADS = 8
NUM_WARPS = 2
FORMATS = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""Codes of quantised caches; 0 is the heads' own dtype."""


# The start of a row of 8-byte numbers depends on the rows before it, and only one number is read.
@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "block_ids_ptr", "slots_ptr"])
def _rope_store_kv_kernel(
    heads_ptr,
    positions_ptr,
    cos_sin_ptr,
    cache_ptr,
    block_ids_ptr,
    slots_ptr,
    q_norm_ptr,
    k_norm_ptr,
    scales_ptr,
    heads_row_stride,
    heads_head_stride,
    cache_block_stride,
    scales_block_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    CACHE_BLOCK_SIZE: tl.constexpr,
    FORMAT: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    q_groups: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    kv_groups: tl.constexpr = (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    half: tl.constexpr = ROTARY_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    is_query = group < q_groups
    is_value = group >= q_groups + kv_groups
    head = tl.arange(0, BLOCK_HEADS)
    if is_query:
        head += group * BLOCK_HEADS
        first_head = 0
        num_heads = NUM_HEADS
    elif is_value:
        head += (group - q_groups - kv_groups) * BLOCK_HEADS
        first_head = NUM_HEADS + NUM_KV_HEADS
        num_heads = NUM_KV_HEADS
    else:
        head += (group - q_groups) * BLOCK_HEADS
        first_head = NUM_HEADS
        num_heads = NUM_KV_HEADS

    # A head in three parts: the two halves that are rotated, and the rest.
    at = tl.arange(0, BLOCK_HALF)
    rest_at = tl.arange(0, BLOCK_REST)
    has_head = head[:, None] < num_heads
    mask = has_head & (at < half)[None, :]
    rest_mask = has_head & (rest_at < HEAD_DIM - ROTARY_DIM)[None, :]
    row = heads_ptr + token * heads_row_stride + (first_head + head)[:, None] * heads_head_stride
    low = tl.load(row + at[None, :], mask, other=0.0).to(tl.float32)
    high = tl.load(row + half + at[None, :], mask, other=0.0).to(tl.float32)
    rest = tl.load(row + ROTARY_DIM + rest_at[None, :], rest_mask, other=0.0).to(tl.float32)

    if not is_value:
        if HAS_NORM:
            square = tl.sum(low * low, 1) + tl.sum(high * high, 1) + tl.sum(rest * rest, 1)
            factor = (1.0 / tl.sqrt(square / HEAD_DIM + eps))[:, None]
            weight_ptr = q_norm_ptr if is_query else k_norm_ptr
            low *= factor * _weight(weight_ptr + at, at < half)
            high *= factor * _weight(weight_ptr + half + at, at < half)
            rest_weight = _weight(
                weight_ptr + ROTARY_DIM + rest_at, rest_at < HEAD_DIM - ROTARY_DIM
            )
            rest *= factor * rest_weight
        angle = cos_sin_ptr + tl.load(positions_ptr + token) * ROTARY_DIM + at
        cos = tl.load(angle, at < half, other=0.0)[None, :]
        sin = tl.load(angle + half, at < half, other=0.0)[None, :]
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned

    if is_query:
        # The thread that stores an element has loaded it, so no thread reads overwritten numbers.
        _store(row, low, high, rest, mask, rest_mask, ROTARY_DIM)
    else:
        block_id = tl.load(block_ids_ptr + token)
        slot = tl.load(slots_ptr + token)
        # (kv, head, slot) numbers the rows of a block.
        cache_row = (first_head - NUM_HEADS + head) * CACHE_BLOCK_SIZE + slot
        to = cache_ptr + block_id * cache_block_stride + cache_row[:, None] * HEAD_DIM
        if FORMAT == 0:
            _store(to, low, high, rest, mask, rest_mask, ROTARY_DIM)
        else:
            largest: tl.constexpr = 127.0 if FORMAT == 1 else 448.0
            most = tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1))
            scale = tl.maximum(most, tl.max(tl.abs(rest), 1)) / largest
            scale_at = scales_ptr + block_id * scales_block_stride + cache_row
            tl.store(scale_at, scale, head < num_heads)
            # Where the scale is 0, so are the numbers.
            scale = tl.where(scale > 0, scale, 1.0)[:, None]
            low_code = _code(low / scale, FORMAT)
            high_code = _code(high / scale, FORMAT)
            rest_code = _code(rest / scale, FORMAT)
            _store(to, low_code, high_code, rest_code, mask, rest_mask, ROTARY_DIM)


@triton.jit
def _store(row, low, high, rest, mask, rest_mask, ROTARY_DIM: tl.constexpr):
    dtype: tl.constexpr = row.dtype.element_ty
    low_at = row + tl.arange(0, low.shape[1])[None, :]
    rest_at = row + ROTARY_DIM + tl.arange(0, rest.shape[1])[None, :]
    tl.store(low_at, low.to(dtype), mask)
    tl.store(low_at + ROTARY_DIM // 2, high.to(dtype), mask)
    tl.store(rest_at, rest.to(dtype), rest_mask)


@triton.jit
def _weight(at_ptr, mask):
    return tl.load(at_ptr, mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _code(x, FORMAT: tl.constexpr):
    """Return the nearest int8 (FORMAT 1), or the bits of the nearest float8_e4m3fn, ties to
    even."""
    if FORMAT == 1:
        x = tl.minimum(tl.maximum(x, -127.0), 127.0)
        # From 1.5·2^23 on fp32 has no fractions.
        return ((x + 12582912.0) - 12582912.0).to(tl.int32)
    # By hand, since GPUs before sm_89 have no such conversion.
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the steps are 2^-9: adding 2^14 leaves their number in the lowest bits.
    steps = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) & 0xFF
    return tl.where(magnitude < 0x3C800000, steps, normal) | ((bits >> 24) & 0x80)


def supports(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> bool:
    """Supports CUDA tensors whose heads are contiguous."""
    return _triton.runs_on(heads, kv_cache) and heads.stride(2) == 1


def rope_store_kv(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> None:
    """See `kernels.rope_store_kv`."""
    tokens, _, head_dim = heads.shape
    parts, num_kv_heads, block_size = kv_cache.shape[1:4]
    if tokens == 0:
        return
    cache_format = 0 if kv_scales is None else FORMATS[kv_cache.dtype]
    constants = _constants(
        num_heads, num_kv_heads, head_dim, cos_sin.shape[1], block_size, cache_format, q_norm
    )
    groups = triton.cdiv(num_heads, BLOCK_HEADS) + parts * triton.cdiv(num_kv_heads, BLOCK_HEADS)
    _rope_store_kv_kernel[(tokens, groups)](
        heads,
        positions,
        cos_sin,
        kv_cache.view(torch.uint8) if cache_format == 2 else kv_cache,
        *slot_mapping,
        q_norm,
        k_norm,
        kv_scales,
        heads.stride(0),
        heads.stride(1),
        kv_cache.stride(0),
        0 if kv_scales is None else kv_scales.stride(0),
        eps,
        **constants,
        num_warps=NUM_WARPS,
    )


def _constants(num_heads, num_kv_heads, head_dim, rotary_dim, block_size, cache_format, q_norm):
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "ROTARY_DIM": rotary_dim,
        "CACHE_BLOCK_SIZE": block_size,
        "FORMAT": cache_format,
        "HAS_NORM": q_norm is not None,
        "BLOCK_HEADS": BLOCK_HEADS,
        "BLOCK_HALF": triton.next_power_of_2(max(rotary_dim // 2, 1)),
        "BLOCK_REST": triton.next_power_of_2(max(head_dim - rotary_dim, 1)),
    }
