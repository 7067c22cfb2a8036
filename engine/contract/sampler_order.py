"""The order in which samplers act, if a request gives one; names and meaning are llama.cpp's.

Imports neither torch nor wire libraries.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.errors import InvalidParameter


def _samplers() -> Mapping[str, tuple[str, ...]]:
    named = [(one.sampler, name) for name, one in SAMPLER_PARAMETERS.items() if one.sampler]
    samplers = dict.fromkeys(sampler for sampler, _ in named)
    return {one: tuple(name for sampler, name in named if sampler == one) for one in samplers}


SAMPLERS = _samplers()
"""The samplers in their usual order, each with its parameters; a sampler whose parameters are all
neutral does nothing."""
OTHER_SAMPLER_NAMES: Mapping[str, str] = {"typ_p": "typical_p"}
_FIRST = ("penalties", "dry")
"""Samplers that change logits by the preceding text; all others remove tokens or scale the rest."""


def check_order(samplers: Sequence[str]) -> None:
    """Check a list of samplers.

    Raises:
        InvalidParameter: one does not exist, is there twice, or is not in front as it must be.
    """
    unknown = [name for name in samplers if name not in SAMPLERS]
    if unknown:
        raise InvalidParameter(
            f"there is no sampler {unknown[0]!r}; use some of {', '.join(SAMPLERS)}",
            param="samplers",
        )
    if len(set(samplers)) < len(samplers):
        twice = next(name for name in samplers if samplers.count(name) > 1)
        raise InvalidParameter(
            f"samplers lists {twice} twice; list each sampler once", param="samplers"
        )
    first = [name for name in samplers if name in _FIRST]
    if first != list(samplers[: len(first)]) or first != sorted(first, key=_FIRST.index):
        raise InvalidParameter(
            "penalties and dry always act first, in this order; put them first in samplers",
            param="samplers",
        )


def without_unlisted(values: Mapping[str, Any], samplers: Sequence[str]) -> dict[str, Any]:
    """Parameter values with which samplers that are not listed do nothing."""
    neutral = {
        name: SAMPLER_PARAMETERS[name].neutral
        for sampler, names in SAMPLERS.items()
        if sampler not in samplers
        for name in names
    }
    return {**values, **neutral}


def acting_order(values: Mapping[str, Any], samplers: Sequence[str]) -> tuple[str, ...] | None:
    """The samplers that do something, in the requested order; None is the usual order.

    There is no order to choose if tokens are not drawn (temperature 0), or if Mirostat decides
    which tokens are left out.
    """
    if values["temperature"] == 0.0 or values["mirostat"]:
        return None
    acting = [
        sampler
        for sampler in samplers
        if sampler not in _FIRST
        and any(values[name] != SAMPLER_PARAMETERS[name].neutral for name in SAMPLERS[sampler])
    ]
    usual = sorted(acting, key=list(SAMPLERS).index)
    return None if acting == usual else tuple(acting)
