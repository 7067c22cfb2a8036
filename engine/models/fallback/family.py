"""The family for models without a family of their own."""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from engine.contract.kv_layout import KvShape
from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.fallback.architecture import causal_class, in_words, refusal, strangers_file
from engine.models.fallback.build import create_class
from engine.models.fallback.model import FallbackConfig, FallbackModel
from engine.models.fallback.names import TensorNames
from engine.models.fallback.own_cache import trace_cache
from engine.models.fallback.trace import ENCODER, TRACED, Findings, is_encoder, trace_layers
from engine.models.family import Family
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentShapes


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
    config = model.config
    paths = {id(module): path for path, module in model.named_modules()}
    facts = _examined(architecture, model)
    layers = facts.layers
    head = paths.get(id(model.get_output_embeddings()))
    if head is None:
        raise refusal(architecture, "it has no output layer")
    with strangers_file(architecture):
        names = TensorNames(architecture, model)
    return FallbackConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_hidden_layers=len(layers),
        num_attention_heads=max(one.num_heads for one in layers),
        num_key_value_heads=max(one.num_kv_heads for one in layers),
        head_dim=max(one.head_dim for one in layers),
        rms_norm_eps=0.0,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        windows=tuple(one.window for one in layers),
        kv_shapes=tuple(KvShape(one.num_kv_heads, one.head_dim) for one in layers),
        embedding=paths[id(model.get_input_embeddings())],
        head=head,
        recurrent_layers=tuple(range(facts.num_attending, len(layers))),
        shapes=RecurrentShapes((0, 0), (facts.state_size,)),
        facts=facts,
        values=dict(keys.values),
        names=names,
    )


def _examined(architecture: str, model: Any) -> Findings:
    """Find out how a model can be served: on the paged cache, or else on transformers' own.

    Raises:
        UnsupportedArchitecture: neither; the message says why the first is impossible.
    """
    try:
        if model.config._attn_implementation != TRACED:
            raise refusal(architecture, "it has attention code of its own")
        return trace_layers(architecture, model)
    except UnsupportedArchitecture as error:
        if ENCODER in str(error):
            raise
        refused = refusal(architecture, ENCODER) if is_encoder(model.config) else error
        try:
            return Findings.of_cache(trace_cache(model, str(refused)))
        except Exception:  # transformers' code may fail in any way
            raise refused from error


def _without_memory(architecture: str, values: Mapping[str, Any]) -> Any:
    """Build the model without memory, to be examined.

    Raises:
        ModelLoadError: transformers refuses the file.
    """
    for attention in (TRACED, "eager"):
        try:
            # The implementation of experts that does not depend on which of them are used.
            with torch.device("meta"):
                model = create_class(
                    architecture, values, attention=attention, experts="batched_mm"
                )
            return model.eval()
        except ModelLoadError:
            raise
        except Exception as error:  # transformers' code may fail in any way on strange sizes
            # Some classes know only their own attention.
            if not isinstance(error, KeyError) or error.args != (TRACED,):
                reason = f"it cannot be built from config.json: {in_words(error)}"
                raise refusal(architecture, reason) from error
    raise AssertionError("unreachable")
