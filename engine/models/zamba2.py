"""Zamba 2: every layer keeps a state by Mamba 2, and some first call a transformer layer.

There are one or two transformer layers, which are called in turn. They read the embedded rows
beside the residual stream. Their result is added to what Mamba reads, but not to the stream. Each
calling layer has its own low-rank additions to the shared weights. Paper: Glorioso et al. 2024,
arXiv:2411.15242.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.models import json_keys
from engine.models.bamba import LINEAR, Mamba2Config, layer_kinds
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder, DecoderModel
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.layers.attention import PagedAttention
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mamba2 import Mamba2, shapes
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from kernels import geglu

ARCHITECTURE = "Zamba2ForCausalLM"
HYBRID = "hybrid"
"""The kind of a layer that calls a shared one."""
MIXER_EPS = 1e-5
"""The epsilon of Mamba's norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zamba2Config(Mamba2Config):
    """Zamba 2's configuration. The layers that attend are those that call a shared layer."""

    num_shared: int
    """The number of transformer layers."""
    rank: int
    """The rank of additions to shared weights."""
    adapts_attention: bool
    """Whether there are additions to the projections of queries, keys and values."""


class Additions(nn.ModuleList):
    """The low-rank additions to one projection of a shared layer, by the place of the calling layer
    among all calling layers. Places of layers that call another shared layer are empty."""

    def __init__(self, config: Zamba2Config, shared: int, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Sequential(
                Linear(inputs, (Shard("0", config.rank),)),
                Linear(config.rank, (Shard("1", outputs),)),
            )
            if place % config.num_shared == shared
            else nn.Identity()
            for place in range(len(config.attending_layers or ()))
        )

    def at(self, place: int, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, in] to [T, out] by the addition of one layer."""
        pair = self[place]
        assert isinstance(pair, nn.Sequential)
        for layer in pair:
            x = layer(x, ctx)
        return x


class SharedAttention(nn.Module):
    """Projections around the attention of several layers. Inputs are twice as wide as outputs."""

    def __init__(self, config: Zamba2Config, shared: int) -> None:
        super().__init__()
        hidden, inputs, dim = config.hidden_size, 2 * config.hidden_size, config.head_dim
        kv_size = config.num_key_value_heads * dim
        sizes = {"q": config.num_attention_heads * dim, "k": kv_size, "v": kv_size}
        shards = [Shard(f"{name}_proj", size) for name, size in sizes.items()]
        self.qkv_proj = Linear(inputs, shards)
        self.o_proj = Linear(sizes["q"], (Shard("o_proj", hidden),))
        self._additions: list[Additions] = []
        if config.adapts_attention:
            for name, size in sizes.items():
                additions = Additions(config, shared, inputs, size)
                self.add_module(f"linear_{name}_adapter_list", additions)
                self._additions.append(additions)

    def forward(
        self,
        x: Tensor,
        place: int,
        attention: PagedAttention,
        rotation: Rotation,
        ctx: ForwardContext,
    ) -> Tensor:
        """Map [T, 2·C] to [T, C] for the calling layer at this place, whose attention is given."""
        qkv = self.qkv_proj(x, ctx)
        if self._additions:
            qkv += torch.cat([additions.at(place, x, ctx) for additions in self._additions], 1)
        return self.o_proj(attention(qkv, rotation, ctx), ctx)

    __call__ = forward


class SharedMlp(GatedMlp):
    """The MLP of a shared layer."""

    def __init__(self, config: Zamba2Config, shared: int) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        super().__init__(hidden, inner, "silu", bias=config.mlp_bias, fused=True)
        self.gate = _gelu_gate
        self.gate_up_proj_adapter_list = Additions(config, shared, hidden, 2 * inner)

    def at(self, place: int, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C] for the calling layer at this place."""
        added = self.gate_up_proj_adapter_list.at(place, x, ctx)
        return self.down_proj(self.gate(self.gate_up_proj(x, ctx).add_(added)), ctx)


class SharedLayer(nn.Module):
    """A transformer layer that several layers call."""

    def __init__(self, config: Zamba2Config, shared: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(2 * config.hidden_size, config.rms_norm_eps)
        self.self_attn = SharedAttention(config, shared)
        self.pre_ff_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = SharedMlp(config, shared)


class MambaLayer(nn.Module):
    """A norm and Mamba 2."""

    def __init__(self, config: Zamba2Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mamba = Mamba2(replace(config, rms_norm_eps=MIXER_EPS), layer, **config.mixer)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        return self.mamba(self.input_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward


class CallingLayer(nn.Module):
    """A layer that calls a shared layer before its own Mamba 2."""

    def __init__(
        self, config: Zamba2Config, options: WeightOptions, layer: int, shared: SharedLayer
    ) -> None:
        super().__init__()
        assert config.attending_layers is not None
        hidden = config.hidden_size
        self._place = config.attending_layers.index(layer)
        self.attention = PagedAttention(
            layer,
            options.parallel,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=(config.head_dim / 2) ** -0.5,
        )
        # The first of its layers owns the shared one; modules are counted once.
        self.shared_transformer = shared
        self.linear = Linear(hidden, (Shard("linear", hidden),))
        self.mamba_decoder = MambaLayer(config, layer)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        assert ctx.embedded is not None
        shared, own = self.shared_transformer, self.mamba_decoder
        residual.add_(x)
        both = shared.input_layernorm(torch.cat((residual, ctx.embedded), 1), ctx)
        found = shared.self_attn(both, self._place, self.attention, rotation, ctx)
        found = shared.feed_forward.at(self._place, shared.pre_ff_layernorm(found, ctx), ctx)
        seen = self.linear(found, ctx).add_(residual)
        return own.mamba(own.input_layernorm(seen, ctx), ctx)

    __call__ = forward


class Zamba2Model(DecoderModel):
    """A decoder whose layers also see the embedded rows."""

    def run_layers(self, residual: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `DecoderModel.run_layers`."""
        return super().run_layers(residual, positions, replace(ctx, embedded=residual.clone()))


def _gelu_gate(gate_up: Tensor) -> Tensor:
    """Compute `gelu(gate) * up` of halves, [T, 2·I] → [T, I]."""
    size = gate_up.shape[1] // 2
    return geglu(torch.cat((gate_up[:, size:], gate_up[:, :size]), 1))


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Zamba2Config) and config.attending_layers is not None
    options.parallel.refuse_several("Zamba 2")
    calling = config.attending_layers
    shared = [SharedLayer(config, number) for number in range(config.num_shared)]

    def create_layer(layer: int) -> nn.Module:
        if layer not in calling:
            return MambaLayer(config, layer)
        own = shared[calling.index(layer) % config.num_shared]
        return CallingLayer(config, options, layer, own)

    return Decoder(config, options, create_layer, create_model=Zamba2Model)


def read_json(keys: MetadataKeys) -> ModelConfig:
    hidden, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    keys = MetadataKeys(
        {
            "intermediate_size": 4 * hidden,
            **{name: value for name, value in keys.values.items() if value is not None},
            "head_dim": 2 * hidden // num_heads,
        },
        keys.source,
    )
    if keys.text("hidden_act", "gelu") != "gelu":
        raise keys.nonsense("hidden_act", "gelu")
    if not keys.flag("tie_word_embeddings", True):
        raise keys.nonsense("tie_word_embeddings", "true, as shared layers depend on it")
    if keys.flag("use_long_context", False):
        raise keys.nonsense("use_long_context", "false; its rotation is not supported")
    kinds = layer_kinds(keys, "layers_block_type", LINEAR, HYBRID)
    sizes = json_keys.size_fields(keys, tied=True)
    if len(kinds) != sizes["num_hidden_layers"]:
        raise keys.nonsense("layers_block_type", f"a list of {sizes['num_hidden_layers']} entries")
    num_mamba_heads, num_groups = json_keys.heads_and_groups(
        keys, ("n_mamba_heads", 8), ("mamba_ngroups", 1)
    )
    bias = keys.flag("add_bias_linear", False)
    rope = json_keys.rope_fields(keys)
    if not keys.flag("use_mem_rope", False):
        rope["rope_scaling"] = {"rope_type": "none"}
    return Zamba2Config(
        architecture=ARCHITECTURE,
        **sizes,
        **rope,
        mlp_bias=bias,
        recurrent_layers=tuple(range(len(kinds))),
        attending_layers=tuple(layer for layer, kind in enumerate(kinds) if kind == HYBRID),
        shapes=shapes(
            num_heads=num_mamba_heads,
            head_dim=keys.integer("mamba_expand", 2) * hidden // num_mamba_heads,
            state_size=keys.integer("mamba_d_state", 64),
            num_groups=num_groups,
            width=json_keys.conv_width(keys, "mamba_d_conv"),
        ),
        mixer={"bias": bias, "out_bias": bias, "dt_limits": json_keys.dt_limits(keys)},
        num_shared=keys.integer("num_mem_blocks", 1),
        rank=keys.integer("adapter_rank", 128),
        adapts_attention=keys.flag("use_shared_attention_adapter", False),
    )


FAMILIES = (
    Family(architecture=ARCHITECTURE, model_type="zamba2", create=create, read_json=read_json),
)
