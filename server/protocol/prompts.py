"""Prompts of OpenAI's older routes: texts or token ids, one or several."""

from itertools import takewhile
from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from server.protocol.common import MAX_PROMPT_TOKENS, TokenId, read_ids

MAX_PROMPTS = 2048

_PROMPT_HELP = (
    "must be a string, an array of strings, an array of token ids, or an array of such arrays, "
    "and not empty"
)

_PromptText = Annotated[str, Field(min_length=1)]
_PromptIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]


def _read_prompts(value: Any) -> list[str] | list[list[int]]:
    """The prompts of a body. One pass over the value, which may be megabytes: a pydantic union
    would try each member in turn."""
    ids = read_ids(value)
    if ids is not None:
        return [ids]
    prompts = [value] if isinstance(value, str) else value
    if isinstance(prompts, list) and len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", _too_many(prompts))
    if isinstance(prompts, list) and prompts:
        if all(isinstance(prompt, str) and prompt for prompt in prompts):
            return prompts
        found = list(takewhile(bool, map(read_ids, prompts)))
        if len(found) == len(prompts):
            return [ids for ids in found if ids]
    raise PydanticCustomError("prompt", _PROMPT_HELP)


def _too_many(prompts: list[Any]) -> str:
    """The message about too many prompts. A list that holds neither texts nor lists was meant as
    the ids of one prompt."""
    if isinstance(prompts[0], str | list):
        return f"has {len(prompts)} texts; at most {MAX_PROMPTS} can be sent at once"
    return f"{_PROMPT_HELP}; a prompt can have at most {MAX_PROMPT_TOKENS} token ids"


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
"""One entry per prompt, all texts or all token ids."""
