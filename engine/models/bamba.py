"""Bamba: most layers keep a state by Mamba 2, the others attend; an MLP follows in each.

Configurations of Granite 4 and Falcon-H1 name the keys of Mamba 2 as Bamba does. Source:
transformers' `modeling_bamba.py`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, gated_mlp
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import GgufKeys, has
from engine.models.json_keys import FULL
from engine.models.layers.experts import SparseMlp
from engine.models.layers.mamba1 import Mamba1
from engine.models.layers.mamba2 import Mamba2, shapes
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig
from engine.models.rope_keys import rope_base

ARCHITECTURE = "BambaForCausalLM"
LINEAR = "linear_attention"
"""What transformers calls a layer with a state."""
_OLD_KINDS = {"mamba": LINEAR, "attention": FULL}
"""The names of transformers 4."""

GGUF_TENSORS = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_a.": "mamba.A_log",
    "ssm_d.": "mamba.D",
    "ssm_dt.bias": "mamba.dt_bias",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}
"""The tensors of Mamba 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Config(RecurrentConfig):
    """A configuration whose layers with a state are of Mamba 2."""

    mixer: dict[str, Any]
    """The arguments of `Mamba2`."""

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        own = ModelConfig.tensor_name(self, name)
        return own.replace("model.final_layernorm.", "model.norm.")


class HybridLayer(nn.Module):
    """A layer with a norm before Mamba or attention, and one before the MLP."""

    def __init__(
        self,
        config: ModelConfig,
        mamba: Mamba1 | Mamba2 | None,
        self_attn: Attention | None,
        feed_forward: GatedMlp | SparseMlp,
    ) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mamba = mamba
        self.self_attn = self_attn
        self.pre_ff_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = feed_forward

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.mix(self.input_layernorm.add(x, residual, ctx), rotation, ctx)
        return self.feed_forward(self.pre_ff_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward

    def mix(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C] by Mamba or attention."""
        if self.mamba is not None:
            return self.mamba(x, ctx)
        assert self.self_attn is not None
        return self.self_attn(x, rotation, ctx)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Mamba2Config)
    bias = config.attention_bias

    def create_layer(layer: int) -> HybridLayer:
        mamba = attention = None
        if layer in config.recurrent_layers:
            mamba = Mamba2(config, layer, **config.mixer)
        else:
            attention = Attention(config, options, layer, qkv_bias=bias, o_bias=bias)
        return HybridLayer(config, mamba, attention, gated_mlp(config, bias=config.mlp_bias))

    return Decoder(config, options, create_layer)


def read_json(keys: MetadataKeys) -> ModelConfig:
    sizes = json_keys.size_fields(keys)
    every = range(sizes["num_hidden_layers"])
    attending = keys.values.get("attn_layer_indices") or []
    if not isinstance(attending, list) or any(layer not in every for layer in attending):
        raise keys.nonsense("attn_layer_indices", "a list of layer numbers")
    # transformers rotates half of each head, whatever the file says.
    rope = json_keys.rope_parameters(keys) | {"partial_rotary_factor": None}
    trained, base = json_keys.trained_length(keys), rope_base(keys, "rope_theta")
    return Mamba2Config(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields_of(rope, json_keys.ROPE_SOURCE, trained, base),
        **json_keys.bias_fields(keys),
        **mamba_fields(keys),
        rotary_dim=sizes["head_dim"] // 2,
        recurrent_layers=tuple(layer for layer in every if layer not in attending),
    )


def mamba_fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `Mamba2Config` about layers with a state."""
    if keys.text("hidden_act", "silu") != "silu":
        raise keys.nonsense("hidden_act", "silu, the only activation of layers with a state")
    num_heads, num_groups = json_keys.heads_and_groups(
        keys, ("mamba_n_heads", 128), ("mamba_n_groups", 1)
    )
    if keys.values.get("mamba_d_head", "auto") == "auto":
        inner = keys.integer("mamba_expand", 2) * keys.integer("hidden_size")
        head_dim = keys.integer("mamba_d_ssm", inner) // num_heads
    else:
        head_dim = keys.integer("mamba_d_head")
    bias = keys.flag("mamba_proj_bias", False)
    return {
        "shapes": shapes(
            num_heads=num_heads,
            head_dim=head_dim,
            state_size=keys.integer("mamba_d_state", 256),
            num_groups=num_groups,
            width=json_keys.conv_width(keys, "mamba_d_conv"),
        ),
        "mixer": {
            "bias": bias,
            "out_bias": bias,
            "conv_bias": keys.flag("mamba_conv_bias", True),
            "dt_limits": json_keys.dt_limits(keys),
        },
    }


def gguf_mamba(keys: GgufKeys) -> dict[str, Any]:
    """Return what config.json says of layers with a state."""
    num_heads = keys.integer(keys.own("ssm.time_step_rank"))
    return {
        "mamba_n_heads": num_heads,
        "mamba_d_head": keys.integer(keys.own("ssm.inner_size")) // num_heads,
        "mamba_n_groups": keys.integer(keys.own("ssm.group_count")),
        "mamba_d_state": keys.integer(keys.own("ssm.state_size")),
        "mamba_d_conv": keys.integer(keys.own("ssm.conv_kernel")),
        "mamba_conv_bias": has(keys, "ssm_conv1d.bias"),
        "mamba_proj_bias": has(keys, "ssm_in.bias"),
        "hidden_act": "silu",
    }


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor of Mamba 2: decays are no logarithms, and
    vectors have two axes."""
    part = name.rpartition(".")[2]
    if part == "A_log":
        return stored.neg().log().flatten()
    if part == "D" or name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        return stored.flatten()
    return stored


def layer_kinds(keys: MetadataKeys, name: str, *known: str) -> list[str]:
    """Read the kind of each layer, which must be one of the known ones."""
    stated = keys.values.get(name)
    found = (
        [_OLD_KINDS.get(str(one), str(one)) for one in stated] if isinstance(stated, list) else []
    )
    if not found or not {*found} <= {*known}:
        raise keys.nonsense(name, f"a list of one entry per layer, each of {', '.join(known)}")
    return found


FAMILIES = (
    Family(architecture=ARCHITECTURE, model_type="bamba", create=create, read_json=read_json),
)
