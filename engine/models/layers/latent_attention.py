"""Attention whose keys and values follow from one narrow latent per token.

The cache keeps the latent c and the rotated part of the key, which all heads share. The other part
of a head's key is W c, and its product with a query, q·(W c), is (Wᵀ q)·c. Each query is therefore
multiplied by Wᵀ instead of each cached latent by W. For values, the weighted sum of latents is
multiplied, not each latent. Prompts and single tokens are computed alike and get the same bits.

Paper: DeepSeek-V2, DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.contract.kv_layout import KvShape
from engine.models.forward_context import ForwardContext
from engine.models.layers.attention import PagedAttention
from engine.models.layers.experts import PreciseLinear
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions, WeightSlot
from engine.quantization.method import TensorSpec
from kernels import ExpertWeights, linear_experts

EPS = 1e-6
"""The epsilon of the latents' norms in all published models."""


class LatentShape(NamedTuple):
    """The sizes of latent attention."""

    latent: int
    """The numbers of a token from which its keys and values follow."""
    rotated: int
    """The elements of a key that are rotated, the same ones for all heads."""
    own: int
    """The other elements of a key, which differ between heads."""
    value: int
    """The elements of a value."""
    of_queries: int | None = None
    """The numbers of the latent from which queries follow; None if they have none."""
    is_divided: bool = False
    """Whether the checkpoint has two tensors for keys and values from a latent, as GGUF files."""

    @property
    def key(self) -> int:
        """The elements of a key."""
        return self.own + self.rotated

    @property
    def cached(self) -> KvShape:
        """What the cache keeps of a token."""
        return KvShape(1, self.rotated + self.latent, parts=1)


class HeadProduct:
    """Multiplies by a matrix of its own for each head.

    Args:
        weights: [H, N, K].
    """

    def __init__(self, weights: Tensor, options: WeightOptions) -> None:
        method = options.plain_method()
        copies = (weight.clone(memory_format=torch.contiguous_format) for weight in weights)
        self._weights = ExpertWeights(tuple(method.arrange(copy).weight for copy in copies))
        self._numbers = torch.arange(len(weights) + 1, device=weights.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [T, H, K] to [T, H, N], each head's rows as if they were those of an expert."""
        rows, heads, size = x.shape
        by_head = x.transpose(0, 1).reshape(heads * rows, size)
        found = linear_experts(by_head, self._weights, self._numbers * rows)
        return found.view(heads, rows, -1).transpose(0, 1)


class LatentExpansion(PreciseLinear):
    """The layer that makes keys and values from a latent, kept as two products.

    Attributes:
        to_latent: maps each head's queries to factors of the latent, [T, H, own] to [T, H, latent].
        to_values: maps each head's sum of latents to its sum of values.
    """

    takes_adapters = False

    def __init__(self, num_heads: int, shape: LatentShape) -> None:
        super().__init__(shape.latent, (Shard("kv_b_proj", num_heads * (shape.own + shape.value)),))
        self._num_heads, self._shape = num_heads, shape

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name the layer's tensors, which are [H, latent, own] and [H, value, latent] if there are
        two."""
        self._options, shape = options, self._shape
        if not shape.is_divided:
            return super().create_weights(path, options)
        neighbours = path.rpartition(".")[0]
        sizes = {"k_b_proj": (shape.latent, shape.own), "v_b_proj": (shape.value, shape.latent)}
        self._divided: dict[str, Tensor] = {}
        return {
            f"{neighbours}.{name}.weight": WeightSlot(
                TensorSpec(shape=(self._num_heads, *size)), partial(self._take, name)
            )
            for name, size in sizes.items()
        }

    def _take(self, name: str, tensor: Tensor) -> None:
        self._divided[name] = tensor.to(self._options.device, self._options.dtype, copy=True)

    def process_weights_after_loading(self) -> None:
        """Divide the weights between the two products, whatever their format is."""
        super().process_weights_after_loading()
        options, shape = self._options, self._shape
        if shape.is_divided:
            keys, values = self._divided.pop("k_b_proj"), self._divided.pop("v_b_proj")
        else:
            ones = torch.eye(shape.latent, dtype=options.dtype, device=options.device)
            weights = self.in_fp32(ones).to(options.dtype).T.view(self._num_heads, -1, shape.latent)
            keys, values = weights[:, : shape.own].mT, weights[:, shape.own :]
            self._parts = []
        self.to_latent, self.to_values = HeadProduct(keys, options), HeadProduct(values, options)


class LatentAttention(nn.Module):
    """Attention over cached latents, with its projections.

    Args:
        hidden: the size of inputs and outputs.
        scale: factor of the scores.
        interleaved: whether neighbouring elements are rotated together, instead of those of halves.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        shape: LatentShape,
        options: WeightOptions,
        layer: int,
        *,
        scale: float,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        options.parallel.refuse_several("latent attention")
        self._shape, self._interleaved = shape, interleaved
        queries = Shard("q_proj", num_heads * shape.key)
        first = queries
        if shape.of_queries is not None:
            first = Shard("q_a_proj", shape.of_queries)
            self.q_a_layernorm = RmsNorm(shape.of_queries, EPS)
            self.q_b_proj = Linear(shape.of_queries, (Shard("q_b_proj", queries.out_features),))
            self.q_a_layernorm.takes_adapters = False
        latent = Shard("kv_a_proj_with_mqa", shape.latent + shape.rotated)
        self.in_proj = Linear(hidden, (first, latent))
        self.kv_a_layernorm = RmsNorm(shape.latent, EPS)
        self.kv_a_layernorm.takes_adapters = False
        self.kv_b_proj = LatentExpansion(num_heads, shape)
        self.o_proj = Linear(num_heads * shape.value, (Shard("o_proj", hidden),))
        self.attention = PagedAttention(
            layer,
            options.parallel,
            num_heads=num_heads,
            num_kv_heads=shape.cached.num_heads,
            head_dim=shape.cached.head_dim,
            scale=scale,
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        rows, heads, shape = len(x), self.attention.num_heads, self._shape
        projected = self.in_proj(x, ctx)
        q, latent = projected[:, : -shape.cached.size], projected[:, -shape.cached.size :]
        if shape.of_queries is not None:
            q = self.q_b_proj(self.q_a_layernorm(q), ctx)
        q = q.view(rows, heads, shape.key)
        packed = x.new_empty(rows, heads + 1, shape.cached.head_dim)
        rotated, others = packed[:, :, : shape.rotated], packed[:, :, shape.rotated :]
        rotated[:, :-1] = self._by_halves(q[:, :, shape.own :])
        rotated[:, -1] = self._by_halves(latent[:, shape.latent :])
        others[:, :-1] = self.kv_b_proj.to_latent(q[:, :, : shape.own])
        others[:, -1] = self.kv_a_layernorm(latent[:, : shape.latent])
        found = self.attention(packed.flatten(1), rotation, ctx).view(rows, heads, -1)
        values = self.kv_b_proj.to_values(found[:, :, shape.rotated :])
        return self.o_proj(values.flatten(1), ctx)

    __call__ = forward

    def _by_halves(self, x: Tensor) -> Tensor:
        """Move elements 0 2 4 … before 1 3 5 …, since halves are rotated together. Scores do not
        depend on the order."""
        return x.view(*x.shape[:-1], -1, 2).mT.flatten(-2) if self._interleaved else x
