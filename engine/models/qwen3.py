"""Qwen3: Llama with the query and key heads normalised before rotation.

Paper: Yang et al. 2025, arXiv:2505.09388.
"""

from engine.models import gguf_keys, json_keys, qwen2
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.family import Family
from engine.models.gguf_keys import GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Qwen3ForCausalLM"
HEAD_DIM = 128
"""The value of a missing `head_dim`."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build a Qwen3, with biases where the configuration has them, but never in the MLP."""
    bias = config.attention_bias
    return pre_norm_decoder(config, options, qkv_bias=bias, o_bias=bias, norms_heads=True)


def read_json(keys: MetadataKeys) -> ModelConfig:
    return ModelConfig(
        architecture=ARCHITECTURE,
        **json_keys.size_fields(keys, head_dim=HEAD_DIM),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=qwen2.windows(keys),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    return ModelConfig(
        architecture=ARCHITECTURE,
        **gguf_keys.size_fields(keys),
        **gguf_keys.rope_fields(keys),
        **gguf_keys.bias_fields(keys),
        windows=gguf_keys.layer_windows(keys),
    )


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen3",
        gguf="qwen3",
        gguf_others=("qwen3vl",),
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
    ),
)
