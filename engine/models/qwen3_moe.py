"""Qwen3's mixtures: Qwen3 with up to hundreds of small MLPs in most layers.

Paper: Yang et al. 2025, arXiv:2505.09388.
"""

from typing import Any

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, DecoderLayer, gated_mlp
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig, gguf_expert_fields
from engine.models.family import Family
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.experts import SparseMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Qwen3MoeForCausalLM"
EXPERTS, CHOSEN, EXPERT_SIZE = 128, 8, 768
"""The values of missing keys."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, ExpertsConfig)

    def create_layer(layer: int) -> DecoderLayer:
        bias = config.attention_bias
        norms = tuple(RmsNorm(config.head_dim, config.rms_norm_eps) for _ in range(2))
        attention = Attention(
            config, options, layer, qkv_bias=bias, o_bias=bias, head_norms=(norms[0], norms[1])
        )
        if layer in config.plain_layers:
            return DecoderLayer(config, attention, gated_mlp(config))
        experts = SparseMlp(
            config.hidden_size,
            config.expert_size,
            config.hidden_act,
            num_experts=config.num_experts,
            top_k=config.experts_per_token,
            normalised=config.normalised,
        )
        return DecoderLayer(config, attention, experts)

    return Decoder(config, options, create_layer)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. Unlike in Qwen3, a missing `head_dim` means that heads share
    the hidden size."""
    sizes = json_keys.size_fields(keys)
    num_experts = keys.integer("num_experts", None) or keys.integer(
        "num_local_experts", EXPERTS, high=MAX_EXPERTS
    )
    window = None
    if keys.flag("use_sliding_window", False):
        window = keys.integer("sliding_window", None)
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, window),
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", CHOSEN, high=num_experts),
        expert_size=keys.integer("moe_intermediate_size", EXPERT_SIZE),
        normalised=keys.flag("norm_topk_prob", False),
        plain_layers=_plain_layers(keys, sizes["num_hidden_layers"]),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. llama.cpp always scales the chosen experts' weights to the sum
    of 1."""
    sizes: dict[str, Any] = gguf_keys.size_fields(keys, experts=True)
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **gguf_keys.rope_fields(keys),
        **gguf_keys.bias_fields(keys),
        **gguf_expert_fields(keys, EXPERT_SIZE),
        windows=gguf_keys.layer_windows(keys),
        normalised=True,
    )


def _plain_layers(keys: MetadataKeys, num_layers: int) -> frozenset[int]:
    """Return the layers without experts. Every `decoder_sparse_step`-th layer has experts, unless
    `mlp_only_layers` names it."""
    step = keys.integer("decoder_sparse_step", 1)
    named = keys.values.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
        raise keys.nonsense("mlp_only_layers", "a list of layer numbers")
    between = (layer for layer in range(num_layers) if (layer + 1) % step)
    return frozenset(between) | frozenset(named)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen3_moe",
        gguf="qwen3moe",
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | {
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_exps": "mlp.experts.*.gate_proj",
            "ffn_up_exps": "mlp.experts.*.up_proj",
            "ffn_down_exps": "mlp.experts.*.down_proj",
        },
    ),
)
