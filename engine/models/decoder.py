"""The decoder of most families: pre-norm layers of grouped-query attention and a gated MLP.

Families call `pre_norm_decoder` with their differences, or build a `Decoder` from layers of their
own. Attributes are named as checkpoints name their tensors, so loading is a lookup. Paper: Touvron
et al. 2023, arXiv:2302.13971.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.experts_config import ExpertsConfig
from engine.models.forward_context import ForwardContext
from engine.models.layers.attention import PagedAttention
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.experts import SparseMlp
from engine.models.layers.linear import Linear, Shard, fused_shard
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rope, RotaryTable, Rotation
from engine.models.layers.weight_slots import WeightOptions
from kernels import sigmoid_mul

CreateLayer = Callable[[int], nn.Module]
"""A function that builds the layer of a number, which is called as `DecoderLayer.forward` is."""


class Attention(nn.Module):
    """Projections around `PagedAttention`.

    Args:
        layer: the layer's number.
        qkv_bias, o_bias: whether the projections have biases.
        head_norms: norms of query and key heads before rotation. The second one is unused in a
            layer that reads another layer's keys.
        value_norm: norm of value heads.
        values_are_keys: whether the values are the keys before norm and rotation.
        scale: factor of the scores; by default D**-0.5.
        soft_cap, aligned: see `PagedAttention`.
        interleaved: whether neighbouring elements of a head are rotated together, instead of those
            of its halves.
        fused: whether the checkpoint has q, k and v in one tensor.
        gated: whether each head's queries come with a gate, whose sigmoid multiplies what the head
            finds.
        o_name: the output projection's name in the checkpoint.
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
        value_norm: RmsNorm | None = None,
        values_are_keys: bool = False,
        scale: float | None = None,
        soft_cap: float | None = None,
        o_name: str = "o_proj",
        interleaved: bool = False,
        aligned: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self._gated = gated
        self._interleaved = interleaved
        hidden, heads = config.hidden_size, config.num_attention_heads
        kv_heads, dim, _ = config.layer_kv_shapes[layer]
        source = config.layer_kv_sources[layer]
        stored = ("k_proj", "v_proj")[: 2 - values_are_keys] if source == layer else ()
        shards = (
            Shard("q_proj", (1 + gated) * heads * dim),
            *(Shard(name, kv_heads * dim, kv_heads) for name in stored),
        )
        self.qkv_proj = Linear(
            hidden,
            (fused_shard("qkv_proj", shards),) if fused else shards,
            bias=qkv_bias,
            partition="outputs",
        )
        self.o_proj = Linear(heads * dim, (Shard(o_name, hidden),), bias=o_bias, partition="inputs")
        self.q_norm: RmsNorm | None
        self.k_norm: RmsNorm | None
        self.q_norm, self.k_norm = head_norms or (None, None)
        for norm in head_norms or ():  # attention itself multiplies by their weights
            norm.takes_adapters = False
        if source != layer:
            self.k_norm = self.q_norm
        self.v_norm = value_norm if source == layer else None
        self.attention = PagedAttention(
            source,
            options.parallel,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=dim**-0.5 if scale is None else scale,
            window=config.layer_windows[layer],
            aligned=aligned,
            soft_cap=soft_cap,
            norm_eps=config.rms_norm_eps,
            stores=source == layer,
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        qkv = self.qkv_proj(x, ctx)
        if self._gated:
            gates, qkv = self._split_gates(qkv)
        if self.v_norm is not None:
            qkv = self._with_normed_values(qkv, self.v_norm)
        if self._interleaved:
            qkv = self._by_halves(qkv)
        if self.q_norm is None or self.k_norm is None:
            found = self.attention(qkv, rotation, ctx)
        else:
            found = self.attention(qkv, rotation, ctx, self.q_norm.weight, self.k_norm.weight)
        if self._gated:
            found = sigmoid_mul(gates, found.view(len(x), -1))
        return self.o_proj(found, ctx)

    __call__ = forward

    def _split_gates(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Take the gates, [T, H·D], out of the projections' outputs."""
        heads, dim = self.attention.num_heads, self.attention.head_dim
        queries = qkv[:, : 2 * heads * dim].view(len(qkv), heads, 2, dim)
        others = qkv[:, 2 * heads * dim :]
        return queries[:, :, 1].flatten(1), torch.cat((queries[:, :, 0].flatten(1), others), 1)

    def _with_normed_values(self, qkv: Tensor, norm: RmsNorm) -> Tensor:
        """Return [T, (H + 2·K)·D] with normalised values, which are the last heads of `qkv` even if
        those are the keys."""
        attention = self.attention
        dim, num_kv_heads = attention.head_dim, attention.num_kv_heads
        values = norm(qkv[:, -num_kv_heads * dim :].reshape(-1, dim))
        queries_and_keys = qkv[:, : (attention.num_heads + num_kv_heads) * dim]
        return torch.cat((queries_and_keys, values.view(len(qkv), -1)), 1)

    def _by_halves(self, qkv: Tensor) -> Tensor:
        """Move elements 0 2 4 … of each query and key head before 1 3 5 …, since halves are
        rotated together. Scores do not depend on the order."""
        num_heads = self.attention.num_heads + self.attention.num_kv_heads
        size = num_heads * self.attention.head_dim
        pairs = qkv[:, :size].view(len(qkv), num_heads, -1, 2)
        return torch.cat((pairs.transpose(2, 3).flatten(1), qkv[:, size:]), 1)


class DecoderLayer(nn.Module):
    """A layer with a norm before attention and one before the MLP, which may be a mixture of
    experts."""

    def __init__(
        self, config: ModelConfig, self_attn: nn.Module, mlp: GatedMlp | SparseMlp
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
        for number, (layer, table) in enumerate(
            zip(self.layers, self._table_of_layer, strict=True)
        ):
            x = layer(x, residual, rotations[table], ctx)
            if ctx.states is not None:
                ctx.states.add_after(number, x)
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
        mlp = mlp_of(config, layer, bias=mlp_bias, fused=fused)
        return DecoderLayer(config, attention, mlp)

    return Decoder(config, options, create_layer)


def gated_mlp(config: ModelConfig, *, bias: bool = False, fused: bool = False) -> GatedMlp:
    """Build a gated MLP with the configuration's sizes and activation."""
    sizes = config.hidden_size, config.intermediate_size
    return GatedMlp(*sizes, config.hidden_act, bias=bias, fused=fused)


def sparse_mlp(config: ExpertsConfig, **particular: Any) -> SparseMlp:
    """Build a mixture with the configuration's sizes, activation and choice.

    Args:
        particular: other arguments of `SparseMlp`.
    """
    return SparseMlp(
        config.hidden_size,
        config.expert_size,
        config.hidden_act,
        num_experts=config.num_experts,
        top_k=config.experts_per_token,
        normalised=config.normalised,
        scores=config.scores,
        shared=config.shared,
        **particular,
    )


def mlp_of(config: ModelConfig, layer: int, **particular: Any) -> GatedMlp | SparseMlp:
    """Build a layer's MLP, which is a mixture if the configuration has experts there.

    Args:
        particular: arguments of `gated_mlp`, which a mixture does not need.
    """
    if isinstance(config, ExpertsConfig) and layer not in config.plain_layers:
        return sparse_mlp(config)
    return gated_mlp(config, **particular)


def rope_of(config: ModelConfig) -> Rope:
    """Return the rope of the configuration."""
    dim = config.rotary_dim or config.head_dim
    return Rope(
        dim,
        config.rope_theta,
        config.max_position_embeddings,
        config.rope_scaling,
        config.rope_axes,
    )
