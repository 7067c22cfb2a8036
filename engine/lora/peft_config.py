"""What PEFT's configuration of an adapter says, and whether it can be served."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.errors import CorruptFile, ModelLoadError

CONFIG = "adapter_config.json"
MAX_NAMED = 3
"""Layers that a message lists."""
MAX_SHOWN = 100
"""Characters of a name."""
MAX_PATTERNS = 4096
"""Of ranks or alphas; each layer is compared with all of them."""

_UNSUPPORTED = {
    "trainable_token_indices": "token embeddings (trainable_token_indices)",
    "lora_bias": "biases of its own (lora_bias)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "ensure_weight_tying": "copies that are tied to one another (ensure_weight_tying)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Keys of the configuration that make it something else than B·A beside linear layers."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that subtract the first adapter from the base, which ours is not then."""
_LARGEST = 3.4e38
"""About the end of fp32."""
_PLAIN_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+")


def check_supported(config: Mapping[str, Any], kinds: Collection[str] = ("LORA",)) -> None:
    """
    Args:
        kinds: values of `peft_type` that can be served.

    Raises:
        ModelLoadError: it asks for something that is not supported; names it.
    """
    if config.get("peft_type") not in tuple(kinds):
        raise ModelLoadError(
            f"{CONFIG} says peft_type {shortened(config.get('peft_type'))}; "
            f"{', '.join(kinds)} it can be"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise ModelLoadError(f"it has {what}, which is not supported here")
    if config.get("bias", "none") != "none":
        raise ModelLoadError("it has biases, which are not supported here; train with bias none")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_BASE):
        raise ModelLoadError(
            f"it was begun with {shortened(begun)}, which changes the base model; convert it to a "
            f"plain LoRA when you save it (path_initial_model_for_weight_conversion)"
        )


def check_no_copies(config: Mapping[str, Any]) -> None:
    """
    Raises:
        ModelLoadError: it brings whole modules.
    """
    if modules := config.get("modules_to_save"):
        named = listed(modules) if isinstance(modules, list) else shortened(modules)
        raise ModelLoadError(
            f"it brings whole modules of its own (modules_to_save: {named}), which is not "
            f"supported here: all adapters share the model's; train without, or merge it"
        )


def check_copies(config: Mapping[str, Any], copies: Collection[str]) -> None:
    """
    Args:
        copies: the modules that the adapter's file holds whole.

    Raises:
        ModelLoadError: there are to be others.
    """
    stated = config.get("modules_to_save") or []
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise CorruptFile(f"{CONFIG} has a modules_to_save that is no list of names")
    for name in stated:
        if not any(copy.endswith(name) for copy in copies):
            raise CorruptFile(
                f"{CONFIG} has {shortened(name)} in modules_to_save, and the file does not have it"
            )


def stated_scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """`alpha / r`, or `alpha / sqrt(r)` with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    alpha = by_pattern(config, "alpha_pattern", name, config.get("lora_alpha", 8))
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not abs(alpha) <= _LARGEST:
        raise CorruptFile(f"{CONFIG} has no usable lora_alpha for {name}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def by_pattern(config: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    """The value of the first pattern that a layer's name ends with, whole words.

    PEFT takes regular expressions. A stranger's could keep us busy for ever, and configurations in
    use hold names, which these are.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CorruptFile(f"{CONFIG} has a {key} that is no object")
    if len(patterns) > MAX_PATTERNS:
        raise ModelLoadError(
            f"{CONFIG} has {len(patterns)} patterns in {key}; {MAX_PATTERNS} it can be"
        )
    for pattern, value in patterns.items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise ModelLoadError(
                f"{CONFIG} has a {key} with a regular expression; write layers' names"
            )
        wanted = pattern.removeprefix("^").replace("\\.", ".")
        if name == wanted or (not pattern.startswith("^") and name.endswith(f".{wanted}")):
            return value
    return default


def listed(names: Sequence[object]) -> str:
    """The first of them, for a message."""
    more = len(names) - MAX_NAMED
    return ", ".join(map(shortened, names[:MAX_NAMED])) + (f" and {more} more" if more > 0 else "")


def shortened(stated: object) -> str:
    """What a stranger's file says, for a message."""
    return str(stated)[:MAX_SHOWN]
