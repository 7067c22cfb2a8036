"""The definition, in fp32, one token after the other."""

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The number that the largest magnitude of a head becomes, by the cache's dtype."""


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
    """Rotate the query heads in place; rotate the key heads and store them with the values.

    Each query and key head's pairs (i, i + R/2) turn by the angles of its token's position:

        x[:R/2], x[R/2:R]  ←  x1·cos - x2·sin,  x2·cos + x1·sin

    Args:
        heads: [T, H + C·K, D], each token's query, key and value heads, any float dtype; the last
            dimension is contiguous, the others may be strided. Mutated: the first H heads become
            the rotated queries; what the others hold afterwards is unspecified.
        positions: [T] int64, below P.
        cos_sin: [P, R] fp32, contiguous: a position's R/2 cosines, then its R/2 sines. R is even
            and at most D; elements from R on are not rotated.
        kv_cache: [N, C, K, S, D], one layer's keys and values, C = 2, or keys alone, C = 1; blocks
            may be strided (the pool holds all layers of a block together), the rest is contiguous.
            heads' dtype, or int8 or float8_e4m3fn with `kv_scales`. Mutated in the rows' slots
            only. K is 0 where queries alone are rotated.
        slot_mapping: block ids and slots within the block, each [T] int64. Of rows that share a
            slot, as padding may, any one is stored.
        num_heads: H.
        q_norm, k_norm: [D], fp32 or heads' dtype, both or none: weights of RMS norms of the heads
            before their rotation (Qwen3).
        eps: added to the mean square by these norms.
        kv_scales: [N, C, K, S] fp32, blocks may be strided. Mutated: the largest magnitude of each
            stored head, divided by 127 (int8) or 448 (float8); the cache holds `value / scale`,
            rounded to the nearest, and zeros where the scale is 0.

    Computed in fp32, rounded once. A row's result depends on nothing but the row.

    Papers: RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34, with the halves instead of
    neighbours paired, as in Hugging Face checkpoints; PagedAttention, Kwon et al. 2023,
    arXiv:2309.06180, section 4.
    """
    parts, num_kv_heads = kv_cache.shape[1:3]
    q, k, v = heads.float().tensor_split([num_heads, num_heads + num_kv_heads], 1)
    angles = cos_sin[positions][:, None]
    heads[:, :num_heads] = _rotated(_normed(q, q_norm, eps), angles).to(heads.dtype)
    kv = torch.stack((_rotated(_normed(k, k_norm, eps), angles), v)[:parts], dim=1)
    block_ids, slots = slot_mapping[0].tolist(), slot_mapping[1].tolist()
    for token, (block_id, slot) in enumerate(zip(block_ids, slots, strict=True)):
        if kv_scales is None:
            kv_cache[block_id, :, :, slot] = kv[token].to(kv_cache.dtype)
        else:
            codes, scales = _quantized(kv[token], kv_cache.dtype)
            kv_cache[block_id, :, :, slot] = codes
            kv_scales[block_id, :, :, slot] = scales


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate [T, heads, D] by [T, 1, R]."""
    half = cos_sin.shape[-1] // 2
    cos, sin = cos_sin[..., :half], cos_sin[..., half:]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)


def _quantized(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise [..., D] fp32 to the cache's numbers [..., D] and their scales [...]."""
    scales = x.abs().amax(-1) / LARGEST[dtype]
    scaled = torch.where(scales[..., None] > 0, x / scales[..., None], 0)
    scaled = scaled.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scales
