"""Our paged attention as a function of transformers' attention interface."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.errors import ModelLoadError
from engine.models.fallback.step import current_context, next_number
from kernels import PagedBatch, paged_attention, rope_store_kv

PAGED = "tandem_paged"
"""The name of the function in configurations. It has no mask function, so transformers makes no
masks."""
_POSITION_DIMS = 8
"""Numbers by which keys grow for biases that depend on positions."""
_PART = 256


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    alibi: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Store the step's keys and values, and attend to everything cached.

    Heads that are smaller than the layer's cache are padded with zeros.

    Args:
        module: the attention module; `tandem_windows` has the windows of all calls.
        query: [1, H, T, D].
        key, value: [1, K, T, D] and [1, K, T, E].
        s_aux: [H], the sinks' scores (`kernels.paged_attention`).
        alibi: [H], what is added to a head's scaled score for each position of the key.
        others: arguments that `engine.models.fallback.trace` has found to be without effect here.

    Returns:
        [1, T, H, E].
    """
    ctx = current_context()
    layer = next_number()
    windows: Sequence[int | None] = module.tandem_windows  # type: ignore[assignment]
    cache = ctx.kv_caches[layer]
    scales = ctx.kv_scales[layer] if ctx.kv_scales else None
    batch, slot_mapping = ctx.groups[ctx.group_of_layer[layer]]
    num_heads, num_tokens, dim = query.shape[1:]
    scale = dim**-0.5 if scaling is None else scaling
    if alibi is not None:
        if scales is not None:
            raise ModelLoadError(
                "this model's keys contain their positions, which 8 bits cannot hold; set "
                "kv_cache_dtype to auto",
                param="kv_cache_dtype",
            )
        query, key = _with_positions(query, key, alibi / scale, batch)
    size = cache.shape[4]
    rows = torch.cat([_padded(one[0], size) for one in (key, value)])
    rope_store_kv(
        rows.transpose(0, 1),
        torch.zeros_like(slot_mapping[0]),
        _no_rotation(rows.device),
        cache,
        slot_mapping,
        num_heads=0,
        kv_scales=scales,
    )
    mixed = paged_attention(
        _padded(query[0], size).transpose(0, 1).to(rows.dtype).contiguous(),
        cache,
        batch,
        scale=scale,
        window=windows[layer],
        soft_cap=softcap,
        kv_scales=scales,
        sinks=None if s_aux is None else s_aux.float(),
    )
    mixed = mixed.view(1, num_tokens, num_heads, size)
    return mixed[..., : value.shape[3]].to(query.dtype), None


def cached_dim(dim: int, value_dim: int, has_alibi: bool) -> int:
    """The size of cached keys and values of a layer with these sizes."""
    positions = _POSITION_DIMS if has_alibi else 0
    return max(dim + positions, value_dim)


def _padded(heads: Tensor, dim: int) -> Tensor:
    """Pad [H, T, D] with zeros to heads of that size."""
    missing = dim - heads.shape[2]
    return F.pad(heads, (0, missing)) if missing else heads


def _with_positions(
    query: Tensor, key: Tensor, slopes: Tensor, batch: PagedBatch
) -> tuple[Tensor, Tensor]:
    """Append numbers to keys, and to queries, whose product is the slope of the head times the
    position of the key. A position is divided so that its parts are exact in bf16.

    Args:
        slopes: [H].
    """
    ends = batch.cu_seqlens_q[1:]
    lengths = ends - batch.cu_seqlens_q[:-1]
    rows = torch.arange(key.shape[2], device=key.device)
    positions = rows + torch.repeat_interleave(
        batch.context_lens - ends, lengths, output_size=len(rows)
    )
    unused = (0, _POSITION_DIMS - 2)
    parts = F.pad(torch.stack((positions // _PART, positions % _PART), -1), unused)
    weights = F.pad(torch.stack((slopes * _PART, slopes), -1), unused)
    return (
        torch.cat((query, weights[None, :, None].expand(*query.shape[:3], -1).to(query.dtype)), -1),
        torch.cat((key, parts[None, None].expand(*key.shape[:3], -1).to(key.dtype)), -1),
    )


@functools.cache
def _no_rotation(device: torch.device) -> Tensor:
    """Return [1, 2], a rotation by zero, since the heads come rotated already."""
    return torch.tensor([[1.0, 0.0]], device=device)


AttentionInterface.register(PAGED, attend)
