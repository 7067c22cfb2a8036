"""Keys of config.json that several families read in the same way.

This module knows the layouts that transformers 4 and 5 write. A family's own module knows what a
key, or its absence, means in that family.
"""

from math import inf
from typing import Any

from engine.errors import ModelLoadError
from engine.models.config import MAX_LAYERS
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import (
    MAX_POSITIONS,
    extended_length,
    normalise_rope_scaling,
    rope_base,
)

FULL, SLIDING = "full_attention", "sliding_attention"
"""Entries of `layer_types`."""
_AXES = ("mrope_section", "mrope_interleaved", "type")
ROPE_SOURCE = "config.json: rope_parameters"
"""The source that messages name."""


def size_fields(
    keys: MetadataKeys, *, head_dim: int | None = None, tied: bool = False
) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that are sizes.

    Args:
        head_dim: the value of a missing key; None: the heads share the hidden size.
        tied: the value of a missing `tie_word_embeddings`.
    """
    num_heads = keys.integer("num_attention_heads")
    return {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": keys.integer("hidden_size"),
        "intermediate_size": keys.integer("intermediate_size"),
        "num_hidden_layers": keys.integer("num_hidden_layers", high=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _num_kv_heads(keys, num_heads),
        "head_dim": _head_dim(keys, num_heads, head_dim),
        "rms_norm_eps": keys.number("rms_norm_eps"),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", tied),
    }


def rope_fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `ModelConfig` about positions.

    transformers 5 stores theta and scaling in `rope_parameters`, transformers 4 in separate keys.
    """
    parameters, base = rope_parameters(keys), rope_base(keys, "rope_theta")
    return rope_fields_of(parameters, ROPE_SOURCE, trained_length(keys), base)


def rope_parameters(keys: MetadataKeys) -> dict[str, Any]:
    """Return a copy of the parameters that `rope_fields` reads, wherever the file has them."""
    parameters, scaling = (_object(keys, name) for name in ("rope_parameters", "rope_scaling"))
    merged = scaling | parameters
    merged.setdefault("partial_rotary_factor", keys.values.get("partial_rotary_factor"))
    return merged


def partial_rope_fields(keys: MetadataKeys, head_dim: int, part: float) -> dict[str, Any]:
    """Read what `rope_fields` reads, and how many elements of a head are rotated.

    Args:
        part: the rotated share of a head where a file lacks it.
    """
    rope = without_axes(rope_parameters(keys))
    part = MetadataKeys(rope, ROPE_SOURCE).number("partial_rotary_factor", part, high=1.0)
    rope["partial_rotary_factor"] = None
    keys = MetadataKeys({**keys.values, "rope_parameters": rope, "rope_scaling": None}, keys.source)
    return {**rope_fields(keys), "rotary_dim": int(head_dim * part)}


def without_axes(rope: dict[str, Any]) -> dict[str, Any]:
    """Return parameters without those of several axes, along which positions of texts are equal."""
    return {key: one for key, one in rope.items() if key not in _AXES}


def rope_fields_of(
    parameters: dict[str, Any], source: str, trained: int, base: float
) -> dict[str, Any]:
    """Read the fields about positions from one dictionary of transformers; `base` is its default
    theta."""
    theta = rope_base(MetadataKeys(parameters, source), "rope_theta", base)
    scaling = normalise_rope_scaling(parameters, trained, source)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position_embeddings": extended_length(trained, scaling),
    }


def trained_length(keys: MetadataKeys) -> int:
    """Return the number of positions that the model was trained for."""
    length: int = keys.integer("max_position_embeddings", high=MAX_POSITIONS)
    return length


def heads_and_groups(
    keys: MetadataKeys, heads: tuple[str, int] | tuple[str], groups: tuple[str, int] | tuple[str]
) -> tuple[int, int]:
    """Read the numbers of heads and of their groups. The arguments are the keys, with the values of
    missing keys if these may be missing."""
    num_heads, num_groups = keys.integer(*heads), keys.integer(*groups)
    if num_heads % num_groups:
        raise keys.nonsense(heads[0], f"a multiple of {groups[0]}, which is {num_groups}")
    return num_heads, num_groups


def conv_width(keys: MetadataKeys, name: str) -> int:
    """Read how many positions a short convolution sees."""
    width: int = keys.integer(name, 4, low=2, high=8)
    return width


def dt_limits(keys: MetadataKeys) -> tuple[float, float]:
    """Read the limits of the steps of Mamba 2. transformers 5 writes infinity as an object."""
    stated = keys.values.get("time_step_limit")
    if stated is None:
        return 0.0, inf
    try:
        low, high = (float(one["__float__"] if isinstance(one, dict) else one) for one in stated)
    except (KeyError, TypeError, ValueError):
        low, high = inf, 0.0
    if not 0 <= low <= high:
        raise keys.nonsense("time_step_limit", "two numbers from 0 up, the lower one first")
    return low, high


def bias_fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that say which linear layers have biases."""
    return {name: keys.flag(name, False) for name in ("attention_bias", "mlp_bias")}


def layer_windows(
    keys: MetadataKeys, window: int | None, layer_types: list[str] | None = None
) -> tuple[int | None, ...]:
    """Read `ModelConfig.windows`.

    Args:
        window: the window of sliding layers; None if no layer slides.
        layer_types: the value of a missing `layer_types`; None if all layers slide.

    Raises:
        ModelLoadError: `layer_types` is not a list of the two types, one per layer.
    """
    if window is None:
        return ()
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    types = keys.values.get("layer_types")
    if types is None:
        types = [SLIDING] * num_layers if layer_types is None else layer_types
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(entry not in (FULL, SLIDING) for entry in types)
    ):
        raise keys.nonsense(
            "layer_types", f"a list of {num_layers} entries, each {FULL} or {SLIDING}"
        )
    return tuple(window if entry == SLIDING else None for entry in types)


def _object(keys: MetadataKeys, name: str) -> dict[str, Any]:
    value = keys.values.get(name)
    if value is not None and not isinstance(value, dict):
        raise keys.nonsense(name, "an object")
    return value or {}


def _num_kv_heads(keys: MetadataKeys, num_heads: int) -> int:
    num_kv_heads: int = keys.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise keys.nonsense(
            "num_key_value_heads", f"a divisor of num_attention_heads, which is {num_heads}"
        )
    return num_kv_heads


def _head_dim(keys: MetadataKeys, num_heads: int, default: int | None) -> int:
    head_dim = keys.integer("head_dim", default)
    if head_dim is None:
        hidden_size = keys.integer("hidden_size")
        if hidden_size % num_heads:
            raise keys.nonsense(
                "hidden_size", f"a multiple of num_attention_heads, which is {num_heads}"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ModelLoadError(f"config.json: head_dim is {head_dim}; it must be even")
    return int(head_dim)
