"""Fields that take one of a few whole numbers."""

from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def _not_a_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


NOT_A_FLAG = BeforeValidator(_not_a_flag)
"""Refuses true and false, as Python takes them for 1 and 0."""
