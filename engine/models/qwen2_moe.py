"""Qwen2's mixtures: Qwen2 with small MLPs, of which a router chooses some, and one with a gate that
every token passes.

Paper: Yang et al. 2024, arXiv:2407.10671.
"""

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.experts_config import ExpertsConfig, gated_shared_expert, json_expert_fields
from engine.models.family import Family
from engine.models.gguf_keys import EXPERT_TENSORS, LAYER_TENSORS, GgufKeys, as_json
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Qwen2MoeForCausalLM"
EXPERTS, CHOSEN, EXPERT_SIZE, SHARED_SIZE = 60, 4, 1408, 5632
"""The values of missing keys."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    return pre_norm_decoder(config, options, qkv_bias=config.attention_bias)


def read_json(keys: MetadataKeys) -> ModelConfig:
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_expert_fields(keys, num_experts=EXPERTS, chosen=CHOSEN, expert_size=EXPERT_SIZE),
        attention_bias=keys.flag("qkv_bias", True),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=_windows(keys),
        normalised=keys.flag("norm_topk_prob", False),
        shared=gated_shared_expert(keys, SHARED_SIZE),
    )


def _windows(keys: MetadataKeys) -> tuple[int | None, ...]:
    """Return the windows. They apply only with `use_sliding_window`, to every second of the first
    `max_window_layers` layers."""
    if not keys.flag("use_sliding_window", False):
        return ()
    last = keys.integer("max_window_layers", 28, low=0)
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    types = [FULL if layer % 2 or layer >= last else SLIDING for layer in range(num_layers)]
    return json_keys.layer_windows(keys, keys.integer("sliding_window", 4096), types)


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, whose converter drops `norm_topk_prob`: published models have
    false."""
    found = as_json(keys, {})
    has_bias = found.flag("attention_bias", False)
    return read_json(MetadataKeys({**found.values, "qkv_bias": has_bias}, keys.source))


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen2_moe",
        create=create,
        read_json=read_json,
        gguf="qwen2moe",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS | EXPERT_TENSORS,
    ),
)
