"""Llama, and what is built like it: SmolLM2, Yi, and Mistral, which may look back a window only.

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
    """Biases are where the configuration has them."""
    bias = config.attention_bias
    return pre_norm_decoder(config, options, qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias)


def read_llama(keys: MetadataKeys) -> ModelConfig:
    """Llama has no windows, whatever its file says."""
    return ModelConfig(
        architecture=LLAMA,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
    )


def read_mistral(keys: MetadataKeys) -> ModelConfig:
    """A window is every layer's unless `layer_types` says otherwise."""
    return ModelConfig(
        architecture=MISTRAL,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        **json_keys.bias_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, keys.integer("sliding_window", None)),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """GGUF has one name for both, and for Mixtral."""
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
        gguf_pairs_rows=True,
    ),
    Family(architecture=MISTRAL, model_type="mistral", create=create, read_json=read_mistral),
)
