"""The attention of one layer over the paged cache."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.parallel import TensorParallel
from engine.models.layers.rotary import Rotation
from kernels import paged_attention, rope_store_kv


class PagedAttention(nn.Module):
    """Rotates the heads, stores the new keys and values, then attends to everything cached.

    Args:
        layer: the layer whose cache is used.
        stores: whether there are new keys and values; without, the layer reads what another one of
            the step has stored.
        num_heads, num_kv_heads: the model's numbers; heads of one key/value head stay together.
        scale: factor of the scores.
        window: positions that each query looks back at, its own included; None for all.
        aligned: see `kernels.paged_attention`.
        soft_cap: bends the scores, see `kernels.paged_attention`; None leaves them.
        norm_eps: epsilon of the norms whose weights `forward` gets.

    Attributes:
        sinks: see `kernels.paged_attention`, for this rank's heads; None for models without.
        query_factor: computes the factors of rotated queries, which fit [T, H, D], from their
            positions, [T]; None for none.
        looks_ahead: whether rows see later ones where the step says so (`PagedBatch.key_ends`).
    """

    sinks: Tensor | None = None
    query_factor: Callable[[Tensor], Tensor] | None = None
    looks_ahead = True

    def __init__(
        self,
        layer: int,
        parallel: TensorParallel,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int | None = None,
        aligned: bool = False,
        soft_cap: float | None = None,
        norm_eps: float = 0.0,
        stores: bool = True,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.stores = stores
        self.num_heads = parallel.share(num_heads, "attention heads")
        own = parallel.among(num_kv_heads)
        self.num_kv_heads = own.share(num_kv_heads, "key/value heads")
        self.head_dim = head_dim
        self.scale = scale
        self.window = window
        self.aligned = aligned
        self.soft_cap = soft_cap
        self.norm_eps = norm_eps

    def forward(
        self,
        qkv: Tensor,
        rotation: Rotation,
        ctx: ForwardContext,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> Tensor:
        """Map [T, (H + 2·K)·D], each row's query, key and value heads, to [T, H·D]. Keys that are
        the values, too, are given once. A layer that does not store takes [T, H·D], the query
        heads.

        `q_norm` and `k_norm` are the weights of RMS norms before the rotation, [D].
        """
        cache = ctx.kv_caches[self.layer]
        scales = ctx.kv_scales[self.layer] if ctx.kv_scales else None
        batch, slot_mapping = ctx.groups[ctx.group_of_layer[self.layer]]
        if batch.key_ends is not None and not self.looks_ahead:
            batch = replace(batch, key_ends=None)
        heads = qkv.view(len(qkv), -1, self.head_dim)
        rope_store_kv(
            heads,
            rotation.positions,
            rotation.cos_sin,
            self._stored(cache),
            slot_mapping,
            num_heads=self.num_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=self.norm_eps,
            kv_scales=None if scales is None else self._stored(scales),
        )
        q = heads.narrow(1, 0, self.num_heads)
        if self.query_factor is not None:
            q = (q * self.query_factor(rotation.positions)).to(q.dtype)
        return paged_attention(
            q,
            cache,
            batch,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            kv_scales=scales,
            sinks=self.sinks,
            aligned=self.aligned,
        )

    __call__ = forward

    def _stored(self, cache: Tensor) -> Tensor:
        """Return the part of [N, C, K, …] that new keys and values go to, which has no heads if
        there are none."""
        return cache if self.stores else cache.narrow(2, 0, 0)
