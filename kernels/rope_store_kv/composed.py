"""Whole heads at once, and one indexed write."""

import torch
from torch import Tensor

from kernels.rope_store_kv.reference import LARGEST


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
    num_tokens, num_all, dim = heads.shape
    parts, num_kv_heads = kv_cache.shape[1:3]
    rotated = heads.narrow(1, 0, num_heads + num_kv_heads)
    x = rotated.float()
    if q_norm is not None and k_norm is not None:
        weights = torch.cat((q_norm.expand(num_heads, -1), k_norm.expand(num_kv_heads, -1)))
        x = x * (torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weights)
    cos, sin = cos_sin[positions][:, None].chunk(2, dim=-1)
    half = cos.shape[-1]
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    low, high = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    x = torch.cat((low, high, x[..., 2 * half :]), dim=-1)
    cache = kv_cache.permute(0, 3, 1, 2, 4)
    shape = (num_tokens, parts, num_kv_heads, dim)
    if kv_scales is None:
        rotated.copy_(x)
        kv = heads.narrow(1, num_heads, num_all - num_heads)
        cache.index_put_(slot_mapping, kv.view(shape))
        return
    heads[:, :num_heads] = x[:, :num_heads]
    v = heads.narrow(1, num_heads + num_kv_heads, (parts - 1) * num_kv_heads).float()
    kv = torch.cat((x[:, num_heads:], v), dim=1).view(shape)
    largest = LARGEST[kv_cache.dtype]
    scales = kv.abs().amax(-1, keepdim=True) / largest
    # A scale of 0 gives 0/0.
    codes = (kv / scales).nan_to_num_(0.0).clamp_(-largest, largest)
    if kv_cache.dtype is torch.int8:
        codes.round_()
    _bytes(cache).index_put_(slot_mapping, _bytes(codes.to(kv_cache.dtype)))
    kv_scales.permute(0, 3, 1, 2).index_put_(slot_mapping, scales.squeeze(-1))


def _bytes(x: Tensor) -> Tensor:
    """View 8-bit floats as bytes, since PyTorch has no indexed write of them on all devices."""
    return x.view(torch.uint8)
