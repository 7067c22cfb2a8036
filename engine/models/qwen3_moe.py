"""Qwen3's mixtures: Qwen3 with up to hundreds of small MLPs in most layers.

Paper: Yang et al. 2025, arXiv:2505.09388.
"""

from typing import Any

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.experts_config import ExpertsConfig, gguf_expert_fields, json_expert_fields
from engine.models.family import Family
from engine.models.gguf_keys import EXPERT_TENSORS, LAYER_TENSORS, GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Qwen3MoeForCausalLM"
EXPERTS, CHOSEN, EXPERT_SIZE = 128, 8, 768
"""The values of missing keys."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    bias = config.attention_bias
    return pre_norm_decoder(config, options, qkv_bias=bias, o_bias=bias, norms_heads=True)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. Unlike in Qwen3, a missing `head_dim` means that heads share
    the hidden size."""
    window = None
    if keys.flag("use_sliding_window", False):
        window = keys.integer("sliding_window", None)
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, window),
        **json_expert_fields(keys, num_experts=EXPERTS, chosen=CHOSEN, expert_size=EXPERT_SIZE),
        normalised=keys.flag("norm_topk_prob", False),
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


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen3_moe",
        gguf="qwen3moe",
        gguf_others=("qwen3vlmoe",),
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS | EXPERT_TENSORS,
    ),
)
