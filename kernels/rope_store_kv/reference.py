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
    """See `kernels.rope_store_kv`."""
    num_kv_heads = kv_cache.shape[2]
    sizes = [num_heads, num_kv_heads, num_kv_heads]
    q, k, v = torch.split(heads.float(), sizes, dim=1)
    angles = cos_sin[positions][:, None]
    heads[:, :num_heads] = _rotated(_normed(q, q_norm, eps), angles).to(heads.dtype)
    kv = torch.stack((_rotated(_normed(k, k_norm, eps), angles), v), dim=1)
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
