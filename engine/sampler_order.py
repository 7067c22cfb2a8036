"""In which order the samplers act, where a request says so: llama.cpp's names and meaning.

Free of torch and of wire libraries.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidParameter
from engine.sampling_params import SAMPLER_PARAMETERS


def _samplers() -> Mapping[str, tuple[str, ...]]:
    named = [(one.sampler, name) for name, one in SAMPLER_PARAMETERS.items() if one.sampler]
    samplers = dict.fromkeys(sampler for sampler, _ in named)
    return {one: tuple(name for sampler, name in named if sampler == one) for one in samplers}


SAMPLERS = _samplers()
"""Each with the parameters that are neutral where it does nothing, in the order in which they
act unless asked otherwise."""
OTHER_SAMPLER_NAMES: Mapping[str, str] = {"typ_p": "typical_p"}
_FIRST = ("penalties", "dry")
"""They change logits by the text before; all others leave tokens out, or scale what is left."""


def check_order(samplers: Sequence[str]) -> None:
    """
    Raises:
        InvalidParameter: there is no such sampler, one is there twice, or behind one that must come
            after it.
    """
    unknown = [name for name in samplers if name not in SAMPLERS]
    if unknown:
        raise InvalidParameter(
            f"there is no sampler {unknown[0]!r}; use some of {', '.join(SAMPLERS)}",
            param="samplers",
        )
    if len(set(samplers)) < len(samplers):
        twice = next(name for name in samplers if samplers.count(name) > 1)
        raise InvalidParameter(f"samplers has {twice} twice; name each once", param="samplers")
    first = [name for name in samplers if name in _FIRST]
    if first != list(samplers[: len(first)]) or first != sorted(first, key=_FIRST.index):
        raise InvalidParameter(
            "penalties and dry act before all others here, in this order; put them first",
            param="samplers",
        )


def without_unlisted(values: Mapping[str, Any], samplers: Sequence[str]) -> dict[str, Any]:
    """Values of parameters, where samplers that are not listed do nothing."""
    neutral = {
        name: SAMPLER_PARAMETERS[name].neutral
        for sampler, names in SAMPLERS.items()
        if sampler not in samplers
        for name in names
    }
    return {**values, **neutral}


def acting_order(values: Mapping[str, Any], samplers: Sequence[str]) -> tuple[str, ...] | None:
    """Those that do something, in the order that was asked for; None: it is the usual one.

    Where tokens are not drawn (temperature 0), or Mirostat leaves them out, there is nothing to
    put in order.
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
