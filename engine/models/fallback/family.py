"""The family for models without a family of their own."""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from engine.errors import ModelLoadError
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.fallback.architecture import causal_class, in_words, refusal
from engine.models.fallback.build import create_class
from engine.models.fallback.model import FallbackConfig, FallbackModel
from engine.models.fallback.names import TensorNames
from engine.models.fallback.trace import TRACED, trace_layers
from engine.models.family import Family
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys


@functools.cache
def fallback_family(architecture: str) -> Family | None:
    """Return the family for a causal language model of transformers, or None if transformers has
    none of that name."""
    if causal_class(architecture) is None:
        return None
    return Family(
        architecture=architecture,
        model_type="",
        create=create,
        read_json=functools.partial(read_json, architecture=architecture),
    )


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, FallbackConfig)
    return FallbackModel(config, options)


def read_json(keys: MetadataKeys, *, architecture: str) -> ModelConfig:
    """Examine a model and read its configuration.

    Raises:
        UnsupportedArchitecture: the model cannot run on a paged cache; the message says why.
        ModelLoadError: transformers refuses the file.
    """
    model = _without_memory(architecture, keys.values)
    config, layers = model.config, trace_layers(architecture, model)
    num_kv_heads = max(one.num_kv_heads for one in layers)
    group = max(one.num_heads // one.num_kv_heads for one in layers)
    paths = {id(module): path for path, module in model.named_modules()}
    head = paths.get(id(model.get_output_embeddings()))
    if head is None:
        raise refusal(architecture, "it has no output layer")
    return FallbackConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=num_kv_heads * group,
        num_key_value_heads=num_kv_heads,
        head_dim=max(one.head_dim for one in layers),
        rms_norm_eps=0.0,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        windows=tuple(one.window for one in layers),
        embedding=paths[id(model.get_input_embeddings())],
        head=head,
        values=dict(keys.values),
        names=TensorNames(architecture, model),
    )


def _without_memory(architecture: str, values: Mapping[str, Any]) -> Any:
    """Build the model without memory, to be examined.

    Raises:
        ModelLoadError: transformers refuses the file.
    """
    try:
        # The implementation of experts that does not depend on which of them are used.
        with torch.device("meta"):
            model = create_class(architecture, values, attention=TRACED, experts="batched_mm")
    except ModelLoadError:
        raise
    except Exception as error:  # transformers' code may fail in any way on strange sizes
        if isinstance(error, KeyError) and error.args == (TRACED,):
            reason = "it has attention code of its own"
        else:
            reason = f"it cannot be built from config.json: {in_words(error)}"
        raise refusal(architecture, reason) from error
    return model.eval()
