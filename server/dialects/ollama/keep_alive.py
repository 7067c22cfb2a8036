"""Ollama's `keep_alive`: how long a model stays awake without a request."""

import re

from engine.errors import InvalidParameter

FOR_EVER = -1.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_MOST_S = float((1 << 31) - 1)


def seconds_of(keep_alive: str | float) -> float:
    """The seconds of a number or of a duration such as `10m` or `1h30m`; `FOR_EVER` if it is
    negative.

    Raises:
        InvalidParameter: it is none.
    """
    if isinstance(keep_alive, str):
        text = keep_alive.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        bare = text.lstrip("+-")
        parts = _PART.findall(bare)
        if "".join(number + unit for number, unit in parts) == bare and parts:
            value = sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+\.?\d*", bare):
            value = sign * float(bare)
        else:
            raise InvalidParameter(
                f"keep_alive is {keep_alive[:40]!r}; send seconds, or a duration such as 10m or "
                "1h30m",
                param="keep_alive",
            )
    else:
        value = float(keep_alive)
    return FOR_EVER if value < 0 else min(value, _MOST_S)
