"""The numbers of rotary embeddings, as config.json and GGUF files state them."""

import math
from typing import Any

from engine.models.metadata_keys import MetadataKeys

MAX_POSITIONS = 1 << 27
"""The most positions of a model; published ones reach 10 million."""
DEFAULT_BASE = 10000.0


def rope_base(keys: MetadataKeys, key: str, default: float = DEFAULT_BASE) -> float:
    """Read the base of a rotary embedding.

    Raises:
        ModelLoadError: angles cannot be computed from the base; models use 1e4 to 1e10.
    """
    base: float = keys.number(key, default, low=2.0, high=1e15)
    return base


def extended_length(trained: int, rope_scaling: dict[str, Any] | None) -> int:
    """Return the positions that the model can use, which only with YaRN exceed
    `max_position_embeddings`.

    Paper: YaRN, Peng et al. 2023, arXiv:2309.00071.
    """
    if rope_scaling is None or rope_scaling["rope_type"] != "yarn":
        return trained
    original = rope_scaling["original_max_position_embeddings"]
    return max(trained, int(original * rope_scaling["factor"]))


def normalise_rope_scaling(raw: dict[str, Any], trained: int, source: str) -> dict[str, Any] | None:
    """Convert a scaling dictionary to transformers 5's form; None for plain RoPE.

    Old files say `type` for `rope_type`, and YaRN's may lack the length it extends.
    """
    elsewhere = ("type", "rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in raw.items() if name not in elsewhere}
    keys = MetadataKeys(raw, source)
    scaling["rope_type"] = keys.text("rope_type", None) or keys.text("type", "default")
    if scaling["rope_type"] == "proportional":
        scaling["rotated"] = keys.number("partial_rotary_factor", 1.0, high=1.0)
        scaling["factor"] = keys.number("factor", 1.0, low=1e-3, high=1e4)
    elif keys.number("partial_rotary_factor", 1.0) != 1.0:
        raise keys.nonsense(
            "partial_rotary_factor", "1, as partial rotary embeddings are not supported"
        )
    if scaling["rope_type"] == "default":
        return None
    if scaling["rope_type"] in ("linear", "dynamic", "llama3", "yarn"):
        scaling["factor"] = keys.number("factor", low=1e-3, high=1e4)
    if scaling["rope_type"] in ("llama3", "yarn", "longrope"):
        name = "original_max_position_embeddings"
        scaling[name] = keys.integer(name, trained, high=MAX_POSITIONS)
    if scaling["rope_type"] == "longrope":
        scaling |= {name: keys.numbers(name) for name in ("short_factor", "long_factor")}
        original = scaling["original_max_position_embeddings"]
        factor = keys.number("factor", trained / original)
        scaling.pop("factor", None)
        scaling["attention_factor"] = keys.number(
            "attention_factor", _attention_factor(factor, original), high=1e3
        )
    _check_bends(keys, scaling["rope_type"])
    return scaling


def _attention_factor(factor: float, original: int) -> float:
    """Return LongRoPE's attention factor for a model that can use `factor` times the `original`
    length."""
    if factor <= 1 or original <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _check_bends(keys: MetadataKeys, rope_type: str) -> None:
    """Check the numbers that state where a scaling begins, if they are present."""
    if rope_type == "llama3":
        low, high = (keys.number(f"{end}_freq_factor", None) for end in ("low", "high"))
        if low is not None and high is not None and low > high:
            raise keys.nonsense("high_freq_factor", f"at least low_freq_factor, which is {low:g}")
    if rope_type == "yarn":
        for name in ("beta_fast", "beta_slow", "attention_factor"):
            keys.number(name, None)
        for name in ("mscale", "mscale_all_dim"):
            keys.number(name, None, positive=False, low=0.0)
