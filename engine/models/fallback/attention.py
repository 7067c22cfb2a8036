"""Our paged attention as a function of transformers' attention interface."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.models.fallback.step import current_context
from kernels import paged_attention, rope_store_kv

PAGED = "tandem_paged"
"""The name of the function in configurations. It has no mask function, so transformers makes no
masks."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Store the step's keys and values, and attend to everything cached.

    Args:
        module: the attention module; `layer_idx` gives its cache and `tandem_window` its window.
        query: [1, H, T, D].
        key, value: [1, K, T, D] and [1, K, T, ≤ D]; shorter values are padded.
        s_aux: the scores of the heads' sinks, [H].
        others: arguments that `engine.models.fallback.trace` has found to be without effect here.

    Returns:
        [1, T, H, size of a value].
    """
    ctx = current_context()
    layer: int = module.layer_idx  # type: ignore[assignment]
    window: int | None = module.tandem_window  # type: ignore[assignment]
    cache = ctx.kv_caches[layer]
    scales = ctx.kv_scales[layer] if ctx.kv_scales else None
    batch, slot_mapping = ctx.groups[ctx.group_of_layer[layer]]
    num_heads, num_tokens, dim = query.shape[1:]
    padding = dim - value.shape[3]
    rows = torch.cat((key[0], F.pad(value[0], (0, padding)) if padding else value[0]))
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
        query[0].transpose(0, 1).to(rows.dtype).contiguous(),
        cache,
        batch,
        scale=dim**-0.5 if scaling is None else scaling,
        window=window,
        soft_cap=softcap,
        kv_scales=scales,
        sinks=None if s_aux is None else s_aux.float(),
    )
    return mixed.view(1, num_tokens, num_heads, dim)[..., : dim - padding].to(query.dtype), None


@functools.cache
def _no_rotation(device: torch.device) -> Tensor:
    """Return [1, 2], a rotation by zero, since the heads come rotated already."""
    return torch.tensor([[1.0, 0.0]], device=device)


AttentionInterface.register(PAGED, attend)
