"""Checked reading of a checkpoint's metadata, with errors that name the key."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import ModelLoadError

_MAX_INT = 1 << 31
_MISSING: Any = object()


class MetadataKeys:
    """A mapping from config.json or GGUF metadata, read with type and range checks.

    A key whose value is null counts as missing. A missing key gives `default`, or raises
    ModelLoadError where there is no default.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def integer(
        self, key: str, default: Any = _MISSING, *, low: int = 1, high: int = _MAX_INT - 1
    ) -> Any:
        value = self._value(key, default)
        if value is default:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.nonsense(key, f"an integer from {low} to {high}")
        return value

    def number(
        self,
        key: str,
        default: Any = _MISSING,
        *,
        positive: bool = True,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Any:
        value = self._value(key, default)
        if value is default:
            return default
        if not _is_number(value) or (positive and value <= 0):
            raise self.nonsense(key, "a positive number" if positive else "a number")
        if not low <= value <= high:
            raise self.nonsense(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of positive numbers."""
        value = self._value(key, _MISSING)
        if not isinstance(value, list | tuple) or not all(_is_number(n) and n > 0 for n in value):
            raise self.nonsense(key, "a list of positive numbers")
        return tuple(map(float, value))

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.nonsense(key, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> Any:
        value = self._value(key, default)
        if value is not default and not isinstance(value, str):
            raise self.nonsense(key, "a text")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """Return a token id or a list of them as a tuple; empty if missing."""
        value = self.values.get(key)
        found = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        ids = [] if value is None else list(found)
        for entry in ids:
            if not isinstance(entry, int) or isinstance(entry, bool) or not 0 <= entry < _MAX_INT:
                raise self.nonsense(key, "a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))

    def inner(self, key: str, missing: Mapping[str, Any] | None = None) -> "MetadataKeys":
        """Return the keys of an object, which is empty if it is missing.

        Args:
            missing: values for keys that the object lacks.
        """
        value = self._value(key, {})
        if not isinstance(value, Mapping):
            raise self.nonsense(key, "an object")
        stated = {name: one for name, one in value.items() if one is not None}
        return MetadataKeys({**(missing or {}), **stated}, f"{self.source}: {key}")

    def nonsense(self, key: str, wanted: str) -> ModelLoadError:
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelLoadError(f"{self.source}: {key} is {shown}; it must be {wanted}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise ModelLoadError(
                f"{self.source} has no {key}; the checkpoint is incomplete or of another kind"
            )
        return default


def _is_number(value: object) -> bool:
    """Whether the value is a number that is finite as a float; an integer may have any number of
    digits."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
