"""The decoder of most families: pre-norm layers of grouped-query attention and a gated MLP.

Families call `pre_norm_decoder` with their differences, or build a `Decoder` from layers of their
own. Attributes are named as checkpoints name their tensors, so loading is a lookup. Paper: Touvron
et al. 2023, arXiv:2302.13971.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.models.layers.attention import PagedAttention
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.experts import SparseMlp
from engine.models.layers.linear import Linear, Shard, fused_shard
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rope, RotaryTable, Rotation
from engine.models.layers.weight_slots import WeightOptions

CreateLayer = Callable[[int], nn.Module]
"""A function that builds the layer of a number, which is called as `DecoderLayer.forward` is."""


class Attention(nn.Module):
    """Projections around `PagedAttention`.

    Args:
        layer: the layer's number.
        qkv_bias, o_bias: whether the projections have biases.
        head_norms: norms of query and key heads before rotation.
        scale: factor of the scores; by default D**-0.5.
        soft_cap: see `PagedAttention`.
        fused: whether the checkpoint has q, k and v in one tensor.
    """

    def __init__(
        self,
        config: ModelConfig,
        options: WeightOptions,
        layer: int,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        fused: bool = False,
        head_norms: tuple[RmsNorm, RmsNorm] | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        shards = (
            Shard("q_proj", heads * dim),
            Shard("k_proj", kv_heads * dim),
            Shard("v_proj", kv_heads * dim),
        )
        self.qkv_proj = Linear(
            hidden,
            (fused_shard("qkv_proj", shards),) if fused else shards,
            bias=qkv_bias,
            partition="outputs",
        )
        self.o_proj = Linear(
            heads * dim, (Shard("o_proj", hidden),), bias=o_bias, partition="inputs"
        )
        self.q_norm: RmsNorm | None
        self.k_norm: RmsNorm | None
        self.q_norm, self.k_norm = head_norms or (None, None)
        for norm in head_norms or ():  # attention itself multiplies by their weights
            norm.takes_adapters = False
        self.attention = PagedAttention(
            layer,
            options.parallel,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=dim**-0.5 if scale is None else scale,
            window=config.layer_windows[layer],
            soft_cap=soft_cap,
            norm_eps=config.rms_norm_eps,
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        qkv = self.qkv_proj(x, ctx)
        if self.q_norm is None or self.k_norm is None:
            return self.o_proj(self.attention(qkv, rotation, ctx), ctx)
        norms = self.q_norm.weight, self.k_norm.weight
        return self.o_proj(self.attention(qkv, rotation, ctx, *norms), ctx)

    __call__ = forward


class DecoderLayer(nn.Module):
    """A layer with a norm before attention and one before the MLP, which may be a mixture of
    experts."""

    def __init__(
        self, config: ModelConfig, self_attn: Attention, mlp: GatedMlp | SparseMlp
    ) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """Run the layer. Both tensors are [T, C]; `x` is the previous layer's addition to the
        residual stream, which is mutated. Return this layer's addition."""
        x = self.input_layernorm.add(x, residual, ctx)
        x = self.self_attn(x, rotation, ctx)
        return self.mlp(self.post_attention_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward


class DecoderModel(nn.Module):
    """Embedding, layers and last norm.

    Args:
        ropes: the rope of each layer; equal ones share a table.

    Attributes:
        stream_scale: factor of embedded rows, what adapters add to them included.
    """

    stream_scale = 1.0

    def __init__(
        self,
        embed_tokens: TokenEmbedding,
        layers: Sequence[nn.Module],
        norm: RmsNorm,
        ropes: Sequence[Rope],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        distinct = [rope for at, rope in enumerate(ropes) if rope not in ropes[:at]]
        self._tables = [RotaryTable(rope, device) for rope in distinct]
        self._table_of_layer = [distinct.index(rope) for rope in ropes]

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        residual = self.embed_tokens(token_ids, ctx)
        if self.stream_scale != 1.0:
            residual.mul_(self.stream_scale)
        return self.norm.add(self.run_layers(residual, positions, ctx), residual, ctx)

    def run_layers(self, residual: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """Run all layers on the embedded rows, which are mutated. Return the last one's
        addition."""
        longest = ctx.longest_context
        rotations = [table.at(positions, longest) for table in self._tables]
        x = torch.zeros_like(residual)
        for layer, table in zip(self.layers, self._table_of_layer, strict=True):
            x = layer(x, residual, rotations[table], ctx)
        return x

    __call__ = forward


class Decoder(CausalLM):
    """A `DecoderModel` with its output layer.

    Args:
        create_layer: builds the layer of a number.
        norm: the last norm; by default a plain `RmsNorm`.
        ropes: the rope of each layer; by default the configuration's.
        embedding_scale, soft_cap, logit_scale: see `TokenEmbedding` and `LmHead`.
        stream_scale: see `DecoderModel`.
        create_model: builds the model from the arguments of `DecoderModel`.
    """

    ends_take_adapters = True

    def __init__(
        self,
        config: ModelConfig,
        options: WeightOptions,
        create_layer: CreateLayer,
        *,
        norm: RmsNorm | None = None,
        ropes: Sequence[Rope] | None = None,
        embedding_scale: float = 1.0,
        soft_cap: float | None = None,
        logit_scale: float = 1.0,
        stream_scale: float = 1.0,
        create_model: Callable[..., DecoderModel] = DecoderModel,
    ) -> None:
        super().__init__(config, options)
        num_layers = config.num_hidden_layers
        self.model = create_model(
            TokenEmbedding(config.vocab_size, config.hidden_size, scale=embedding_scale),
            [create_layer(layer) for layer in range(num_layers)],
            norm or RmsNorm(config.hidden_size, config.rms_norm_eps),
            ropes or [rope_of(config)] * num_layers,
            options.device,
        )
        self.model.stream_scale = stream_scale
        self.lm_head = LmHead(
            self.model.embed_tokens,
            tied=config.tie_word_embeddings,
            soft_cap=soft_cap,
            scale=logit_scale,
        )

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        return self.model(token_ids, positions, ctx)


def pre_norm_decoder(
    config: ModelConfig,
    options: WeightOptions,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    norms_heads: bool = False,
    fused: bool = False,
) -> Decoder:
    """Build a decoder of `DecoderLayer`s.

    Args:
        norms_heads: whether query and key heads are normalised before rotation.
        fused: whether the checkpoint has q, k and v in one tensor, and gate and up in one.
    """

    def head_norm() -> RmsNorm:
        return RmsNorm(config.head_dim, config.rms_norm_eps)

    def create_layer(layer: int) -> DecoderLayer:
        attention = Attention(
            config,
            options,
            layer,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            head_norms=(head_norm(), head_norm()) if norms_heads else None,
            fused=fused,
        )
        return DecoderLayer(config, attention, gated_mlp(config, bias=mlp_bias, fused=fused))

    return Decoder(config, options, create_layer)


def gated_mlp(config: ModelConfig, *, bias: bool = False, fused: bool = False) -> GatedMlp:
    """Build a gated MLP with the configuration's sizes and activation."""
    sizes = config.hidden_size, config.intermediate_size
    return GatedMlp(*sizes, config.hidden_act, bias=bias, fused=fused)


def rope_of(config: ModelConfig) -> Rope:
    """Return the rope of the configuration."""
    dim = config.rotary_dim or config.head_dim
    return Rope(dim, config.rope_theta, config.max_position_embeddings, config.rope_scaling)
