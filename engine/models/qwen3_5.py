"""Qwen3.5: three of four layers keep a state by the gated delta rule, the others attend and gate
what they find.

Heads are normalised before a rotation of their first quarter, and norms store their weights minus
1. Source: transformers' `modeling_qwen3_5.py`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import Attention, Decoder, mlp_of
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen35Config(RecurrentConfig):
    """Qwen3.5's configuration."""

    num_k_heads: int
    """The key heads of layers with a state."""
    interleaved: bool = False
    """See `GatedDeltaNet`."""


class Qwen35Layer(nn.Module):
    """A layer with a norm before attention or the delta rule, and one before the MLP."""

    def __init__(self, config: Qwen35Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn: Attention | None = None
        self.linear_attn: GatedDeltaNet | None = None
        if layer in config.recurrent_layers:
            self.linear_attn = GatedDeltaNet(
                config, layer, num_k_heads=config.num_k_heads, interleaved=config.interleaved
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
