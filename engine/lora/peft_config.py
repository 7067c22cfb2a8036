"""PEFT's configuration of an adapter, and the check whether it can be served."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.errors import CorruptFile, ModelLoadError

CONFIG = "adapter_config.json"
MAX_NAMED = 3
"""Number of layers that a message lists."""
MAX_SHOWN = 100
"""Number of characters of a name that a message shows."""
MAX_PATTERNS = 4096
"""The most patterns of ranks or alphas; each layer is compared with all of them."""

_UNSUPPORTED = {
    "trainable_token_indices": "token embeddings (trainable_token_indices)",
    "lora_bias": "biases (lora_bias)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "ensure_weight_tying": "tied copies of modules (ensure_weight_tying)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Keys of the configuration that make an adapter something other than B·A beside linear layers."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract the first adapter from the base, which does not fit the served
base."""
_LARGEST = 3.4e38
"""Roughly the largest fp32 number."""
_PLAIN_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+")


def check_supported(config: Mapping[str, Any], kinds: Collection[str] = ("LORA",)) -> None:
    """Check that everything the configuration asks for is supported.

    Args:
        kinds: the supported values of `peft_type`.

    Raises:
        ModelLoadError: the configuration asks for something unsupported; the message names it.
    """
    if config.get("peft_type") not in tuple(kinds):
        raise ModelLoadError(
            f"{CONFIG}: peft_type is {shortened(config.get('peft_type'))}; it must be "
            f"{' or '.join(kinds)}"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise ModelLoadError(f"the adapter uses {what}, which is not supported")
    if config.get("bias", "none") != "none":
        raise ModelLoadError(
            "the adapter has biases, which are not supported; train with bias none"
        )
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_BASE):
        raise ModelLoadError(
            f"the adapter was initialised with {shortened(begun)}, which changes the base model; "
            f"convert it to a plain LoRA when you save it "
            f"(path_initial_model_for_weight_conversion)"
        )


def check_no_copies(config: Mapping[str, Any]) -> None:
    """Check that the adapter brings no whole modules.

    Raises:
        ModelLoadError: it does.
    """
    if modules := config.get("modules_to_save"):
        named = listed(modules) if isinstance(modules, list) else shortened(modules)
        raise ModelLoadError(
            f"the adapter replaces whole modules (modules_to_save: {named}), which is not "
            f"supported for them; train without modules_to_save, or merge the adapter"
        )


def check_copies(config: Mapping[str, Any], copies: Collection[str]) -> None:
    """Check that the file holds the whole modules that the configuration lists.

    Args:
        copies: the modules that the adapter's file holds whole.

    Raises:
        CorruptFile: the configuration lists others.
    """
    stated = config.get("modules_to_save") or []
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise CorruptFile(f"{CONFIG}: modules_to_save must be a list of names")
    for name in stated:
        if not any(copy.endswith(name) for copy in copies):
            raise CorruptFile(
                f"{CONFIG} lists {shortened(name)} in modules_to_save, but the file lacks it; "
                f"fetch the adapter again"
            )


def stated_scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return `alpha / r`, or `alpha / sqrt(r)` with rsLoRA (Kalajdzievski 2023,
    arXiv:2312.03732)."""
    alpha = by_pattern(config, "alpha_pattern", name, config.get("lora_alpha", 8))
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not abs(alpha) <= _LARGEST:
        raise CorruptFile(f"{CONFIG}: lora_alpha for {name} must be a finite number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def by_pattern(config: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    """Return the value of the first pattern that a layer's name ends with, in whole words.

    PEFT takes regular expressions. An untrusted one could take endless time, and the configurations
    in use hold names, which are patterns here.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CorruptFile(f"{CONFIG}: {key} must be an object")
    if len(patterns) > MAX_PATTERNS:
        raise ModelLoadError(
            f"{CONFIG} has {len(patterns)} patterns in {key}; the limit is {MAX_PATTERNS}"
        )
    for pattern, value in patterns.items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise ModelLoadError(
                f"{CONFIG}: {key} has a regular expression; write names of layers instead"
            )
        wanted = pattern.removeprefix("^").replace("\\.", ".")
        if name == wanted or (not pattern.startswith("^") and name.endswith(f".{wanted}")):
            return value
    return default


def listed(names: Sequence[object]) -> str:
    """List the first names for a message."""
    more = len(names) - MAX_NAMED
    return ", ".join(map(shortened, names[:MAX_NAMED])) + (f" and {more} more" if more > 0 else "")


def shortened(stated: object) -> str:
    """Shorten a text from an untrusted file for a message."""
    return str(stated)[:MAX_SHOWN]
