"""The attention of one layer over the paged cache."""

from torch import Tensor, nn

from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from kernels import paged_attention, store_kv


class PagedAttention(nn.Module):
    """Stores the new keys and values, then attends to everything cached. Has no weights."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.scale = config.head_dim**-0.5
        self.window = layer_window(config, layer)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext) -> Tensor:
        """q [T, H, D], k and v [T, K, D] → [T, H·D]."""
        cache = ctx.kv_caches[self.layer]
        store_kv(k, v, cache, ctx.slot_mapping)
        return paged_attention(q, cache, ctx.batch, scale=self.scale, window=self.window)

    __call__ = forward


def layer_window(config: ModelConfig, layer: int) -> int | None:
    """How far a layer looks back; None is to the start."""
    if config.layer_types is None or config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None
