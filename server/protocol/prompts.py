"""Texts as OpenAI's older routes take them: written out or as token ids, one or several."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from server.protocol.common import (
    MAX_PROMPT_TOKENS,
    MAX_TOKEN_COUNT,
    TokenId,
    integral_items,
)

MAX_PROMPTS = 2048

_PROMPT_HELP = (
    "must be a string, an array of strings, an array of token ids, or an array of such arrays, "
    "and not empty"
)

_PromptText = Annotated[str, Field(min_length=1)]
_PromptIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]


def _read_prompts(value: Any) -> list[str] | list[list[int]]:
    """One pass over what can be megabytes; a pydantic union would try each member in turn."""
    value = integral_items(value)
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS:
        raise PydanticCustomError("prompt", _PROMPT_HELP)
    prompts = [integral_items(prompt) for prompt in prompts]
    if not all(isinstance(p, str) and p for p in prompts) and not all(map(_is_ids, prompts)):
        raise PydanticCustomError("prompt", _PROMPT_HELP)
    return prompts


def _is_ids(value: Any) -> bool:
    """Exactly integers: true and false are integers to Python too. A million ids take 30 ms."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_PROMPT_TOKENS
        and set(map(type, value)) == {int}
        and 0 <= min(value) <= max(value) <= MAX_TOKEN_COUNT
    )


Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(
        _read_prompts,
        json_schema_input_type=_PromptText
        | Annotated[list[_PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
        | _PromptIds
        | Annotated[list[_PromptIds], Field(min_length=1, max_length=MAX_PROMPTS)],
    ),
]
"""One entry per prompt, all text or all token ids."""
