"""Values as JSON text, for families that do not write JSON."""

import json
from typing import Any

_SPELLED = {"None": "null", "True": "true", "False": "false"}
"""Python's words, which models confuse with JSON's."""


def quoted(text: str) -> str:
    """Return a text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def bare_value(text: str) -> str:
    """Return an unquoted value unchanged if it is JSON, otherwise as a string."""
    text = _SPELLED.get(text, text)
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return quoted(text)
    return text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are not JSON
