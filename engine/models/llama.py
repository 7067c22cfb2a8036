"""Llama and models built like it: SmolLM2, Yi, Mistral, whose layers may have a window, and
Ministral 3, whose queries grow with their positions.

Paper: Touvron et al. 2023, arXiv:2302.13971.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from engine.models import gguf_keys, json_keys, mixtral
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.family import Family
from engine.models.gguf_keys import GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
MINISTRAL3 = "Ministral3ForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ministral3Config(ModelConfig):
    """`ModelConfig` of Ministral 3."""

    factor_growth: float
    """By how much the factor of queries grows with the logarithm of the position."""
    factor_length: int
    """The number of positions between two factors."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build a Llama, with biases where the configuration has them."""
    bias = config.attention_bias
    return pre_norm_decoder(config, options, qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias)


def create_ministral3(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build a Ministral 3."""
    assert isinstance(config, Ministral3Config)
    decoder = pre_norm_decoder(config, options)
    growth, length = config.factor_growth, config.factor_length
    for layer in decoder.model.layers:
        layer.self_attn.attention.query_factor = partial(  # type: ignore[union-attr]
            query_factors, growth=growth, length=length
        )
    return decoder


def query_factors(positions: Tensor, growth: float, length: int) -> Tensor:
    """Return the factors of queries at [T] positions, [T, 1, 1]."""
    steps = torch.floor(positions.float() / length)
    return (torch.log1p(steps) * growth + 1.0).view(-1, 1, 1)


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


def read_ministral3(keys: MetadataKeys) -> ModelConfig:
    """Read Ministral 3's keys of config.json."""
    rope = json_keys.rope_parameters(keys)
    growth = rope.pop("llama_4_scaling_beta", None)
    rope.pop("max_position_embeddings", None)
    plain = {**keys.values, "rope_parameters": rope, "rope_scaling": None}
    config = read_mistral(MetadataKeys(plain, keys.source))
    source = MetadataKeys({"llama_4_scaling_beta": growth, **rope}, json_keys.ROPE_SOURCE)
    shared = {one.name: getattr(config, one.name) for one in fields(config)}
    return Ministral3Config(
        **(shared | {"architecture": MINISTRAL3}),
        factor_growth=source.number("llama_4_scaling_beta", 0.0, positive=False),
        factor_length=source.integer(
            "original_max_position_embeddings", json_keys.trained_length(keys)
        ),
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
    Family(
        architecture=MINISTRAL3,
        model_type="ministral3",
        create=create_ministral3,
        read_json=read_ministral3,
    ),
)
