"""The causal classes of transformers and their configurations."""

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.config import MAX_LAYERS
from engine.models.registry import alternatives
from engine.models.rope_keys import MAX_POSITIONS

NOT_OURS = (
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
)
"""Keys of config.json that choose code to run, or outputs that are not used here."""
_PUBLISHED = {"MPTForCausalLM": "MptForCausalLM"}
"""Names that published files have for classes of transformers."""
_WITHOUT_PARTS = ("ChameleonForConditionalGeneration", "GitForCausalLM")
"""Classes for pictures and text in which the text model is not a part of its own."""
_OTHER_LIMITS = ("max_seq_len", "seq_length", "n_positions", "n_ctx")
"""Names of the longest text in configurations without `max_position_embeddings`."""
_UNSTATED_LIMIT = 2048
_PYTHON_NAMES = re.compile(
    r"\b\w+(Error|Exception): |(Class v|V)alidation error for (field|validator) '\w+':"
)
_MOVING_ROPES = ("dynamic", "longrope")


@functools.cache
def causal_class(architecture: str) -> Any | None:
    """Return transformers' class of that name if it is a causal language model, or a text model
    without an output layer, such as `Glm4vTextModel`, with one."""
    if architecture.endswith("TextModel") and hasattr(transformers, architecture):
        return _with_head(getattr(transformers, architecture))
    name = _PUBLISHED.get(architecture, architecture)
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and name not in _WITHOUT_PARTS:
        return None
    return getattr(transformers, name, None)


def _with_head(text_model: Any) -> Any:
    class TextModelWithHead(text_model.__base__):  # type: ignore[misc]
        """A text model with the output layer that the model around it has."""

        base_model_prefix = "model"
        config_class = text_model.config_class

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = text_model(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            scale = getattr(config, "output_multiplier", 1.0)
            self._scale = scale / getattr(config, "logits_scaling", 1.0)
            self._cap = getattr(config, "final_logit_softcapping", None)

        def forward(self, **inputs: Any) -> Any:
            states = self.model(**inputs).last_hidden_state
            logits = self.lm_head(states) * self._scale
            if self._cap:
                logits = self._cap * torch.tanh(logits / self._cap)
            return SimpleNamespace(logits=logits)

    return TextModelWithHead


def read_config(architecture: str, values: Mapping[str, Any]) -> Any:
    """Build transformers' configuration of the class from config.json's keys.

    Raises:
        UnsupportedArchitecture: the model is of a kind that cannot run on a paged cache.
        ModelLoadError: transformers refuses the keys, or a size is absurd.
    """
    with strangers_file(architecture):
        config = parse(causal_class(architecture).config_class, values)  # type: ignore[union-attr]
        if not hasattr(config, "max_position_embeddings"):
            limits = (getattr(config, name, None) for name in _OTHER_LIMITS)
            config.max_position_embeddings = next(filter(None, limits), _UNSTATED_LIMIT)
    _check_kind(architecture, config)
    for name, least, most in (
        ("num_hidden_layers", 1, MAX_LAYERS),
        ("vocab_size", 1, 1 << 31),
        ("max_position_embeddings", 8, MAX_POSITIONS),
    ):
        if not hasattr(config, name):
            raise refusal(architecture, f"its configuration states no {name}")
        value = getattr(config, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise ModelLoadError(f"config.json: {name} must be an integer from {least} to {most}")
    return config


@contextmanager
def strangers_file(architecture: str) -> Iterator[None]:
    """Name the file in errors of transformers' classes, which may fail in any way on a stranger's.

    Raises:
        ModelLoadError: they refuse the file.
    """
    try:
        yield
    except Exception as error:
        raise ModelLoadError(
            f"config.json is not valid for {architecture}: {in_words(error)}"
        ) from error


def in_words(error: Exception) -> str:
    """What an error of transformers or PyTorch says, in one line and without names of exceptions,
    which mean nothing to users."""
    text = " ".join(_PYTHON_NAMES.sub("", str(error)).split())
    if "meta tensor" in text or "register_meta" in text:
        return "its code looks at numbers to decide what to compute"
    if "object has no attribute" in text:
        return "its code uses a part of a layer that Tandem's own layer does not have"
    return text[:300] or "it gives no reason"


def parse(config_class: Any, values: Mapping[str, Any]) -> Any:
    """Build a configuration without the keys that are `NOT_OURS`."""
    ours = {k: v for k, v in values.items() if k not in NOT_OURS}
    return config_class.from_dict(config_class._decode_special_floats(ours))


def _check_kind(architecture: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(architecture, "it is an encoder-decoder model")
    if hasattr(config, "decoder_attention_heads"):
        raise refusal(architecture, "it is the decoder of an encoder-decoder model")
    moving = sorted(set(_rope_types(getattr(config, "rope_parameters", None))) & {*_MOVING_ROPES})
    if moving:
        raise refusal(
            architecture,
            f"its rotary embedding ({moving[0]}) depends on the longest text of a step, so texts "
            f"in one step would change each other",
        )


def _rope_types(parameters: Any) -> list[str]:
    """List the rope types of one dictionary, or of one dictionary per type of layer."""
    if not isinstance(parameters, dict):
        return []
    nested = [entry for entry in parameters.values() if isinstance(entry, dict)]
    return [str(entry.get("rope_type")) for entry in (parameters, *nested)]


def refusal(architecture: str, reason: str) -> UnsupportedArchitecture:
    """Why transformers' code for it cannot be served."""
    return UnsupportedArchitecture(
        f"architecture {architecture!r} is not supported, and transformers' code for it cannot run "
        f"on the paged KV cache: {reason}; {alternatives(architecture)}"
    )
