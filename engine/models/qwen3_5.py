"""Qwen3.5: three of four layers keep a state by the gated delta rule, the others attend and gate
what they find.

Heads are normalised before a rotation of their first quarter, and norms store their weights minus
1. Source: transformers' `modeling_qwen3_5.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import Attention, Decoder, mlp_of
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys, as_json
from engine.models.json_keys import FULL
from engine.models.layers.gated_delta_net import GatedDeltaNet, shapes
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig

ARCHITECTURE = "Qwen3_5ForCausalLM"
LINEAR = "linear_attention"
PERIOD = 4
"""One layer in this many attends where a file says nothing about that."""
ROTATED = 0.25
"""The share of a head that is rotated where a file lacks it."""

GGUF_TENSORS = LAYER_TENSORS | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a.": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35Config(RecurrentConfig):
    """Qwen3.5's configuration."""

    num_k_heads: int
    """The key heads of layers with a state."""
    norm_offset: float = 1.0
    """The value to add to norm weights."""
    delta: dict[str, bool] = field(default_factory=dict)
    """Further arguments of `GatedDeltaNet`."""


class Qwen35Layer(nn.Module):
    """A layer with a norm before attention or the delta rule, and one before the MLP."""

    def __init__(self, config: Qwen35Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn: Attention | None = None
        self.linear_attn: GatedDeltaNet | None = None
        if layer in config.recurrent_layers:
            self.linear_attn = GatedDeltaNet(
                config, layer, num_k_heads=config.num_k_heads, **config.delta
            )
        else:
            self.self_attn = Attention(
                config,
                options,
                layer,
                qkv_bias=config.attention_bias,
                o_bias=config.attention_bias,
                head_norms=(_norm(config, config.head_dim), _norm(config, config.head_dim)),
                gated=True,
            )
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = mlp_of(config, layer)

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
    return Qwen35Config(architecture=ARCHITECTURE, **fields(keys))


def fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `Qwen35Config`, all but the architecture."""
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
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
    num_v_heads, num_k_heads = json_keys.heads_and_groups(
        keys, ("linear_num_value_heads",), ("linear_num_key_heads",)
    )
    sizes = json_keys.size_fields(keys, head_dim=256)
    return {
        **sizes,
        **json_keys.partial_rope_fields(keys, sizes["head_dim"], ROTATED),
        "attention_bias": keys.flag("attention_bias", False),
        "hidden_act": keys.text("hidden_act", "silu"),
        "recurrent_layers": tuple(i for i, entry in enumerate(types) if entry == LINEAR),
        "shapes": shapes(
            num_k_heads=num_k_heads,
            num_v_heads=num_v_heads,
            k_dim=keys.integer("linear_key_head_dim"),
            v_dim=keys.integer("linear_value_head_dim"),
            width=json_keys.conv_width(keys, "linear_conv_kernel_dim"),
        ),
        "num_k_heads": num_k_heads,
    }


def read_gguf(keys: GgufKeys) -> ModelConfig:
    config = read_json(gguf_json(keys))
    assert isinstance(config, Qwen35Config)
    return replace(config, norm_offset=0.0, delta={"tiled": True})


def gguf_json(keys: GgufKeys) -> MetadataKeys:
    """Return the keys of config.json that a GGUF file implies."""
    num_v_heads = keys.integer(keys.own("ssm.time_step_rank"))
    names = {
        "linear_conv_kernel_dim": "ssm.conv_kernel",
        "linear_key_head_dim": "ssm.state_size",
        "linear_num_key_heads": "ssm.group_count",
        "linear_num_value_heads": "ssm.time_step_rank",
        "full_attention_interval": "full_attention_interval",
    }
    found = as_json(
        keys,
        names,
        linear_value_head_dim=keys.integer(keys.own("ssm.inner_size")) // num_v_heads,
        hidden_act="silu",
    )
    recurrent = keys.values.get(keys.own("attention.recurrent_layers"))
    if isinstance(recurrent, list):
        types = [LINEAR if one else FULL for one in recurrent[: found.integer("num_hidden_layers")]]
        found = MetadataKeys({**found.values, "layer_types": types}, keys.source)
    return found


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor: value heads are in another order, and decays
    are no logarithms."""
    assert isinstance(config, Qwen35Config)
    part = name.partition(".linear_attn.")[2]
    heads, k_dim, v_dim = config.shapes.state
    if part == "A_log":
        stored = stored.neg().log()
    if part == "in_proj_ba.weight" and config.delta.get("joins_gates"):
        if len(stored) != 2 * heads:
            return stored  # the layer refuses it
        return stored.view(config.num_k_heads, 2, -1, stored.shape[1]).transpose(0, 1).flatten(0, 2)
    if not part or not config.delta.get("tiled") or part in ("norm.weight", "out_proj.weight"):
        return stored
    is_mixed = part in ("in_proj_qkv.weight", "conv1d.weight")
    first = 2 * config.num_k_heads * k_dim if is_mixed else 0
    size = v_dim if is_mixed or part == "in_proj_z.weight" else 1
    order = torch.arange(heads * size).view(-1, config.num_k_heads, size).transpose(0, 1).flatten()
    rows = stored[first:]
    return torch.cat((stored[:first], rows[order])) if len(rows) == len(order) else stored


def _norm(config: Qwen35Config, size: int) -> RmsNorm:
    return RmsNorm(size, config.rms_norm_eps, offset=config.norm_offset)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen3_5_text",
        create=create,
        read_json=read_json,
        gguf="qwen35",
        read_gguf=read_gguf,
        gguf_tensors=GGUF_TENSORS,
        gguf_original=gguf_original,
    ),
)
