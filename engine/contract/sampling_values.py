"""Checks values of sampler parameters that come from files and settings."""

from collections.abc import Mapping
from typing import Any

from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns, SamplerParameter
from engine.errors import InvalidParameter

_NUMBERS = {name: one for name, one in SAMPLER_PARAMETERS.items() if one.kind != Patterns}


def checked(values: Mapping[str, Any]) -> dict[str, float]:
    """Check the names and values of sampler parameters.

    Raises:
        InvalidParameter: there is no such parameter, or its value is out of bounds.
    """
    for name in values:
        if name not in _NUMBERS:
            raise InvalidParameter(
                f"there is no sampler parameter {str(name)[:80]!r}; use some of "
                f"{', '.join(_NUMBERS)}"
            )
    return {name: _checked(_NUMBERS[name], value) for name, value in values.items()}


def _checked(one: SamplerParameter, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_within(one, value):
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        kind = "a whole number, " if one.kind is int else ""
        raise InvalidParameter(f"{one.name} is {shown}; it must be {kind}{one.bounds}")
    number: float = one.kind(value)
    return number


def _is_within(one: SamplerParameter, value: float) -> bool:
    """Whether a value is within its bounds; works for integers of any length and for NaN."""
    if one.kind is int and value % 1 != 0:
        return False
    if one.choices:
        return value in one.choices
    low = one.ge is None or value >= one.ge
    above = one.gt is None or value > one.gt
    return low and above and (one.le is None or value <= one.le)
