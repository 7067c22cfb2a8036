"""Values as JSON text, of families that do not write JSON."""

import json
from typing import Any

_SPELLED = {"None": "null", "True": "true", "False": "false"}
"""Python's words for them, which models confuse."""


def quoted(text: str) -> str:
    """A text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def bare_value(text: str) -> str:
    """What stands without quotes: as it is if it is JSON, else as a string."""
    text = _SPELLED.get(text, text)
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return quoted(text)
    return text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are no JSON
