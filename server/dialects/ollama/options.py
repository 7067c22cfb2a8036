"""Converts Ollama's `options`."""

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.common import integral
from server.protocol.one_text import TEXT_FIELDS

_READ_OPTIONS = frozenset(("num_predict",))
_NO_EFFECT_OPTIONS = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa"),
        *("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock"),
        "embedding_only",
    )
)
"""Options about how Ollama loads and runs a model."""
_UNSUPPORTED_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "tfs_z": (1,),
    "penalize_newline": (True,),
}
"""Options that are refused, with the values that ask for nothing and pass."""


def ignored_options(options: Mapping[str, Any]) -> list[str]:
    """The options that are unknown here."""
    known = TEXT_FIELDS | _READ_OPTIONS | _NO_EFFECT_OPTIONS | _UNSUPPORTED_OPTIONS.keys()
    return [f"options.{name}" for name in options if name not in known]


def option_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's fields for the options.

    Raises:
        InvalidParameter, UnsupportedFeature: names the option.
    """
    for name, neutral in _UNSUPPORTED_OPTIONS.items():
        if options.get(name) not in (None, *neutral):
            raise UnsupportedFeature(
                f"options.{name} is not supported here; leave it out",
                param=f"options.{name}",
            )
    fields = {name: integral(options[name]) for name in options.keys() & TEXT_FIELDS}
    if fields.get("seed") == -1:
        fields["seed"] = None
    return fields | {"max_tokens": _max_tokens(options.get("num_predict"))}


def _max_tokens(num_predict: Any) -> int:
    """The number of tokens to generate. A missing value, zero and negative values mean up to the
    context's end."""
    asked = integral(num_predict)
    if asked is None:
        return -1
    if not isinstance(asked, int) or isinstance(asked, bool):
        raise InvalidParameter(
            "options.num_predict must be an integer", param="options.num_predict"
        )
    return asked if asked > 0 else -1
