"""Bodies of `POST /v1/completions`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from server.protocol.answers import PromptLogprobs, Usage
from server.protocol.common import (
    MAX_LOGPROBS,
    MAX_PROMPT_TOKENS,
    MAX_TOKEN_COUNT,
    SamplingRequest,
    TokenId,
    TokenLimitOrZero,
    integral_items,
)

MAX_PROMPTS = 2048

_PROMPT_HELP = (
    "must be a string, an array of strings, an array of token ids, or an array of such arrays, "
    "and not empty"
)

Prompt = list[str] | list[list[int]]
"""One entry per prompt, all text or all token ids."""

_PromptText = Annotated[str, Field(min_length=1)]
_PromptIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]


def _read_prompt(value: Any) -> Prompt:
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


class CompletionRequest(SamplingRequest):
    """OpenAI's completion request with vLLM's additions."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "The sky is", "max_tokens": 16}}
    )

    prompt: Annotated[
        Prompt,
        PlainValidator(
            _read_prompt,
            json_schema_input_type=_PromptText
            | Annotated[list[_PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
            | _PromptIds
            | Annotated[list[_PromptIds], Field(min_length=1, max_length=MAX_PROMPTS)],
        ),
    ] = Field(description="Text, token ids, or a list of either. Each prompt has n choices.")
    max_tokens: TokenLimitOrZero | None = Field(
        None,
        description="Most tokens to generate; 0 only scores the prompt, with echo; -1 is what the "
        "context has room for. Default 16.",
    )
    n_predict: TokenLimitOrZero | None = Field(None, description="llama.cpp's name for max_tokens.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return each token's log-probability and this many alternatives.",
    )
    echo: bool | None = Field(
        None, description="Put the prompt before the text, also in log-probabilities."
    )


@dataclass(slots=True)
class CompletionLogprobs:
    """OpenAI's older shape: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@dataclass(slots=True)
class CompletionChoice:
    """Completion j of prompt i is choice i*n + j."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


@dataclass(slots=True, kw_only=True)
class Completion:
    """The answer to a request without `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(msgspec.Struct):
    """A chunk's part of one choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionChunk(msgspec.Struct, kw_only=True):
    """One `data:` line of a stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
