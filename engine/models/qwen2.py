"""Qwen2 and Qwen2.5: Llama with biases on q, k and v.

Paper: Yang et al. 2024, arXiv:2407.10671.
"""

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.family import Family
from engine.models.gguf_keys import GgufKeys
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Qwen2ForCausalLM"


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build a Qwen2, which always has the biases."""
    return pre_norm_decoder(config, options, qkv_bias=True)


def windows(keys: MetadataKeys) -> tuple[int | None, ...]:
    """Return the windows. They apply only with `use_sliding_window`, from layer `max_window_layers`
    on."""
    if not keys.flag("use_sliding_window", False):
        return json_keys.layer_windows(keys, None)
    num_layers = keys.integer("num_hidden_layers")
    first = min(keys.integer("max_window_layers", 28, low=0), num_layers)
    return json_keys.layer_windows(
        keys,
        keys.integer("sliding_window", None),
        [FULL] * first + [SLIDING] * (num_layers - first),
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    return ModelConfig(
        architecture=ARCHITECTURE,
        **json_keys.size_fields(keys),
        **json_keys.rope_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=windows(keys),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    return ModelConfig(
        architecture=ARCHITECTURE,
        **gguf_keys.size_fields(keys),
        **gguf_keys.rope_fields(keys),
        windows=gguf_keys.layer_windows(keys),
    )


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="qwen2",
        gguf="qwen2",
        gguf_others=("qwen2vl",),
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
    ),
)
