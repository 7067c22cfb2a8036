"""Jamba: most layers keep a state by Mamba 1, the others attend; an MLP or experts follow in each.

Heads are not rotated. Paper: Lieber et al. 2024, arXiv:2403.19887.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from engine.models import bamba, json_keys
from engine.models.bamba import HybridLayer
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, mlp_of
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys, as_json, has, of_layers
from engine.models.layers.mamba1 import Mamba1, shapes
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig

ARCHITECTURE = "JambaForCausalLM"
EXPERTS, CHOSEN = 16, 2
"""The numbers of experts and of chosen experts where a file lacks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JambaConfig(RecurrentConfig, ExpertsConfig):
    """Jamba's configuration."""

    mixer: dict[str, Any]
    """The arguments of `Mamba1`."""

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        own = ModelConfig.tensor_name(self, name).replace(".router.", ".gate.")
        return own.replace("model.final_layernorm.", "model.norm.")


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, JambaConfig)

    def create_layer(layer: int) -> HybridLayer:
        mamba = attention = None
        if layer in config.recurrent_layers:
            mamba = Mamba1(config, layer, **config.mixer)
        else:
            attention = Attention(config, options, layer)
        return HybridLayer(config, mamba, attention, mlp_of(config, layer))

    return Decoder(config, options, create_layer)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. Models with one expert have none."""
    if keys.text("hidden_act", "silu") != "silu":
        raise keys.nonsense("hidden_act", "silu, the only activation of layers with a state")
    sizes = json_keys.size_fields(keys)
    every = range(sizes["num_hidden_layers"])
    num_experts = keys.integer("num_experts", EXPERTS, high=MAX_EXPERTS)
    mixing = _layers(keys, "expert_layer", 2, 1, every) if num_experts > 1 else ()
    attending = _layers(keys, "attn_layer", 8, 4, every)
    rank = keys.values.get("mamba_dt_rank", "auto")
    return JambaConfig(
        architecture=ARCHITECTURE,
        **sizes,
        max_position_embeddings=json_keys.trained_length(keys),
        rope_scaling={"rope_type": "none"},
        recurrent_layers=tuple(layer for layer in every if layer not in attending),
        shapes=shapes(
            num_channels=keys.integer("mamba_expand", 2) * sizes["hidden_size"],
            state_size=keys.integer("mamba_d_state", 16),
            width=json_keys.conv_width(keys, "mamba_d_conv"),
        ),
        mixer={
            "rank": (
                -(-sizes["hidden_size"] // 16) if rank == "auto" else keys.integer("mamba_dt_rank")
            ),
            "bias": keys.flag("mamba_proj_bias", False),
            "conv_bias": keys.flag("mamba_conv_bias", True),
            "norm_eps": sizes["rms_norm_eps"],
        },
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", CHOSEN, high=num_experts)
        if mixing
        else 1,
        expert_size=sizes["intermediate_size"],
        normalised=False,
        plain_layers=frozenset(every) - frozenset(mixing),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, which lists the layers that attend. Those with a router have
    experts."""
    kv_heads = of_layers(keys, "attention.head_count_kv")
    names = {
        "mamba_d_conv": "ssm.conv_kernel",
        "mamba_d_state": "ssm.state_size",
        "mamba_dt_rank": "ssm.time_step_rank",
    }
    inner, hidden = keys.integer(keys.own("ssm.inner_size")), keys.own("embedding_length")
    found = as_json(
        keys,
        names,
        num_key_value_heads=max(kv_heads),
        mamba_expand=inner // keys.integer(hidden),
        mamba_conv_bias=has(keys, "ssm_conv1d.bias"),
        rope_parameters=None,
    )
    config = read_json(found)
    assert isinstance(config, JambaConfig)
    return replace(
        config,
        recurrent_layers=tuple(layer for layer, number in enumerate(kv_heads) if not number),
        plain_layers=frozenset(
            layer
            for layer in range(len(kv_heads))
            if f"blk.{layer}.ffn_gate_inp.weight" not in keys.shapes
        ),
    )


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor: decays are no logarithms."""
    return stored.neg().log() if name.endswith(".A_log") else stored


def _layers(
    keys: MetadataKeys, kind: str, period: int, offset: int, every: range
) -> tuple[int, ...]:
    """Read which layers are of a kind: one in `period`, the first one after `offset` others."""
    period = keys.integer(f"{kind}_period", period)
    offset = keys.integer(f"{kind}_offset", offset, low=0, high=period - 1)
    return tuple(every[offset::period])


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="jamba",
        create=create,
        read_json=read_json,
        gguf="jamba",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | bamba.GGUF_TENSORS
        | {
            "ssm_x": "mamba.x_proj",
            "ssm_dt": "mamba.dt_proj",
            "ssm_dt.bias": "mamba.dt_proj.bias",
            "ssm_dt_norm": "mamba.dt_layernorm",
            "ssm_b_norm": "mamba.b_layernorm",
            "ssm_c_norm": "mamba.c_layernorm",
            "ffn_norm": "pre_ff_layernorm",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.gate",
            "ffn_gate_exps": "feed_forward.experts.*.gate_proj",
            "ffn_up_exps": "feed_forward.experts.*.up_proj",
            "ffn_down_exps": "feed_forward.experts.*.down_proj",
        },
        gguf_original=gguf_original,
    ),
)
