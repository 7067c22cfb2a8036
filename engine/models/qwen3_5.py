"""Qwen3.5: three of four layers keep a state by the gated delta rule, the others attend and gate
what they find.

Heads are normalised before a rotation of their first quarter, and norms store their weights minus
1. Source: transformers' `modeling_qwen3_5.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder, gated_mlp
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.json_keys import FULL
from engine.models.layers.attention import PagedAttention
from engine.models.layers.gated_delta_net import GatedDeltaNet, shapes
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig
from kernels import sigmoid_mul

ARCHITECTURE = "Qwen3_5ForCausalLM"
LINEAR = "linear_attention"
PERIOD = 4
"""One layer in this many attends where a file lacks `layer_types`."""
ROTATED = 0.25
"""The share of a head that is rotated where a file lacks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35Config(RecurrentConfig):
    """Qwen3.5's configuration."""

    num_k_heads: int
    """The key heads of layers with a state."""


class GatedAttention(nn.Module):
    """Attention whose output is multiplied by the sigmoid of a gate, which comes with the
    queries."""

    def __init__(self, config: Qwen35Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        shards = (
            Shard("q_proj", 2 * heads * dim),
            Shard("k_proj", kv_heads * dim),
            Shard("v_proj", kv_heads * dim),
        )
        bias = config.attention_bias
        self.qkv_proj = Linear(hidden, shards, bias=bias)
        self.o_proj = Linear(heads * dim, (Shard("o_proj", hidden),), bias=bias)
        self.q_norm, self.k_norm = _norm(config, dim), _norm(config, dim)
        for norm in (self.q_norm, self.k_norm):  # attention itself multiplies by their weights
            norm.takes_adapters = False
        self.attention = PagedAttention(
            layer,
            options.parallel,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=dim**-0.5,
            norm_eps=config.rms_norm_eps,
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        qkv = self.qkv_proj(x, ctx)
        attention = self.attention
        width = attention.num_heads * attention.head_dim
        queries = qkv[:, : 2 * width].view(len(x), attention.num_heads, 2, attention.head_dim)
        heads = torch.cat((queries[:, :, 0].flatten(1), qkv[:, 2 * width :]), 1)
        found = attention(heads, rotation, ctx, self.q_norm.weight, self.k_norm.weight)
        gate = queries[:, :, 1].flatten(1)
        return self.o_proj(sigmoid_mul(torch.cat((gate, found.view(len(x), -1)), 1)), ctx)

    __call__ = forward


class Qwen35Layer(nn.Module):
    """A layer with a norm before attention or the delta rule, and one before the MLP."""

    def __init__(self, config: Qwen35Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn: GatedAttention | None = None
        self.linear_attn: GatedDeltaNet | None = None
        if layer in config.recurrent_layers:
            self.linear_attn = GatedDeltaNet(config, layer, num_k_heads=config.num_k_heads)
        else:
            self.self_attn = GatedAttention(config, options, layer)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = gated_mlp(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.input_layernorm.add(x, residual, ctx)
        if self.linear_attn is not None:
            x = self.linear_attn(x, ctx)
        else:
            assert self.self_attn is not None
            x = self.self_attn(x, rotation, ctx)
        return self.mlp(self.post_attention_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Qwen35Config)
    return Decoder(
        config,
        options,
        lambda layer: Qwen35Layer(config, options, layer),
        norm=_norm(config, config.hidden_size),
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    num_layers = keys.integer("num_hidden_layers")
    types = keys.values.get("layer_types")
    if types is None:
        period = keys.integer("full_attention_interval", PERIOD)
        types = [LINEAR if (i + 1) % period else FULL for i in range(num_layers)]
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(entry not in (FULL, LINEAR) for entry in types)
        or FULL not in types
    ):
        raise keys.nonsense(
            "layer_types",
            f"a list of {num_layers} entries, each {FULL} or {LINEAR}, and one at least {FULL}",
        )
    num_k_heads = keys.integer("linear_num_key_heads")
    num_v_heads = keys.integer("linear_num_value_heads")
    if num_v_heads % num_k_heads:
        raise keys.nonsense(
            "linear_num_value_heads", f"a multiple of linear_num_key_heads, {num_k_heads}"
        )
    rope = json_keys.without_axes(json_keys.rope_parameters(keys))
    part = MetadataKeys(rope, json_keys.ROPE_SOURCE).number(
        "partial_rotary_factor", ROTATED, high=1.0
    )
    rope["partial_rotary_factor"] = None
    keys = MetadataKeys({**keys.values, "rope_parameters": rope, "rope_scaling": None}, keys.source)
    sizes = json_keys.size_fields(keys, head_dim=256)
    return Qwen35Config(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields(keys),
        rotary_dim=int(sizes["head_dim"] * part),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_act", "silu"),
        recurrent_layers=tuple(i for i, entry in enumerate(types) if entry == LINEAR),
        shapes=shapes(
            num_k_heads=num_k_heads,
            num_v_heads=num_v_heads,
            k_dim=keys.integer("linear_key_head_dim"),
            v_dim=keys.integer("linear_value_head_dim"),
            width=keys.integer("linear_conv_kernel_dim", 4, low=2, high=8),
        ),
        num_k_heads=num_k_heads,
    )


def _norm(config: Qwen35Config, size: int) -> RmsNorm:
    return RmsNorm(size, config.rms_norm_eps, offset=1.0)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen3_5_text",
        create=create,
        read_json=read_json,
    ),
)
