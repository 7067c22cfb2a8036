"""Chooses how linear layers keep their weights, from the setting and the checkpoint's format."""

from typing import Literal

from engine.contract.text_settings import Quantization
from engine.errors import ModelLoadError
from engine.quantization.formats import FORMATS


def resolve_quantization(
    wanted: Quantization,
    device: Literal["cpu", "cuda"],
    *,
    stored: str | None,
    has_native: bool,
    prefers_plain: bool = False,
) -> str:
    """How linear layers are kept: a name of `FORMATS`, or `none`. `auto` is resolved, and any other
    choice is checked.

    Args:
        wanted: the operator's choice.
        stored: the checkpoint's format, if the kernels can multiply with it.
        has_native: whether the device's own operations are available: C++ on a CPU, Triton on a
            GPU.
        prefers_plain: whether packed weights would be slower than plain ones.

    Raises:
        ModelLoadError: the choice is not possible here.
    """
    if wanted == "auto":
        return stored if stored and _is_kept(stored, device, has_native, prefers_plain) else "none"
    if wanted == "none":
        return wanted
    facts = FORMATS[wanted]
    if facts.stored_as not in (None, stored):
        raise _impossible(wanted, f"the model has no weights {facts.described}")
    if facts.cpu_only and device != "cpu":
        raise _impossible(wanted, "it is for CPUs only")
    if facts.needs_native and device == "cpu" and not has_native:
        raise _impossible(wanted, "it needs the C++ operations, which cannot be built here")
    return wanted


def _is_kept(stored: str, device: str, has_native: bool, prefers_plain: bool) -> bool:
    """Whether `auto` keeps a checkpoint's format."""
    facts = FORMATS[stored]
    has_operations = has_native or not facts.needs_native
    return device in facts.kept_by_auto_on and has_operations and not prefers_plain


def _impossible(wanted: str, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"quantization {wanted} cannot be used: {reason}; use none", param="quantization"
    )
