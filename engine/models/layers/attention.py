"""The attention of one layer over the paged cache."""

from torch import Tensor, nn

from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.models.layers.parallel import TensorParallel
from engine.models.layers.rotary import Rotation
from kernels import paged_attention, rope_store_kv


class PagedAttention(nn.Module):
    """Rotates the heads, stores the new keys and values, then attends to everything cached.

    Has no weights.
    """

    def __init__(self, config: ModelConfig, layer: int, parallel: TensorParallel) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = parallel.share(config.num_attention_heads, "attention heads")
        self.num_kv_heads = parallel.share(config.num_key_value_heads, "key/value heads")
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.window = layer_window(config, layer)

    def forward(
        self,
        qkv: Tensor,
        rotation: Rotation,
        ctx: ForwardContext,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> Tensor:
        """[T, (H + 2·K)·D], each row's query, key and value heads → [T, H·D].

        `q_norm` and `k_norm` are the weights of RMS norms before the rotation, [D].
        """
        cache = ctx.kv_caches[self.layer]
        heads = qkv.view(len(qkv), -1, self.head_dim)
        rope_store_kv(
            heads,
            rotation.positions,
            rotation.cos_sin,
            cache,
            ctx.slot_mapping,
            num_heads=self.num_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=self.eps,
        )
        q = heads.narrow(1, 0, self.num_heads)
        return paged_attention(q, cache, ctx.batch, scale=self.scale, window=self.window)

    __call__ = forward


def layer_window(config: ModelConfig, layer: int) -> int | None:
    """How far a layer looks back; None is to the start."""
    if config.layer_types is None or config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None
