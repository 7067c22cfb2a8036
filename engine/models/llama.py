"""Llama and models built like it: SmolLM2, Yi, and Mistral, whose layers may have a window.

Paper: Touvron et al. 2023, arXiv:2302.13971.
"""

from engine.models import gguf_keys, json_keys, mixtral
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.family import Family
from engine.models.gguf_keys import GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build a Llama, with biases where the configuration has them."""
    bias = config.attention_bias
    return pre_norm_decoder(config, options, qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias)


def read_llama(keys: MetadataKeys) -> ModelConfig:
    """Read Llama's keys of config.json. Llama has no windows, whatever its file says."""
    return ModelConfig(
        architecture=LLAMA,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
    )


def read_mistral(keys: MetadataKeys) -> ModelConfig:
    """Read Mistral's keys of config.json. A window applies to every layer unless `layer_types` says
    otherwise."""
    return ModelConfig(
        architecture=MISTRAL,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, keys.integer("sliding_window", None)),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, which has one name for Llama, Mistral and Mixtral."""
    if keys.integer(keys.own("expert_count"), 0, low=0):
        return mixtral.read_gguf(keys)
    return ModelConfig(
        architecture=LLAMA,
        **gguf_keys.size_fields(keys),
        **gguf_keys.rope_fields(keys),
        **gguf_keys.bias_fields(keys),
        windows=gguf_keys.layer_windows(keys),
    )


FAMILIES = (
    Family(
        architecture=LLAMA,
        model_type="llama",
        gguf="llama",
        create=create,
        read_json=read_llama,
        read_gguf=read_gguf,
        gguf_original=gguf_keys.unpaired_rows,
    ),
    Family(architecture=MISTRAL, model_type="mistral", create=create, read_json=read_mistral),
)
