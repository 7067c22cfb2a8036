"""Bodies of `POST /v1/completions`."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from pydantic import ConfigDict, Field

from server.protocol.answers import PromptLogprobs, RepetitionReport, Uncertainty, Usage
from server.protocol.common import NumAlternatives, SamplingRequest, TokenLimitOrZero
from server.protocol.kv_transfer import KvTransferFields
from server.protocol.prompts import Prompts


class CompletionRequest(SamplingRequest, KvTransferFields):
    """OpenAI's completion request with vLLM's additions."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "The sky is", "max_tokens": 16}}
    )

    prompt: Prompts = Field(
        description="Text, token ids, or a list of either. Each prompt has n choices."
    )
    max_tokens: TokenLimitOrZero | None = Field(
        None,
        description="Most tokens to generate; 0 with echo only scores the prompt; -1 means as "
        "many as the context has room for. Default 16.",
    )
    n_predict: TokenLimitOrZero | None = Field(None, description="llama.cpp's name for max_tokens.")
    logprobs: NumAlternatives | None = Field(
        None,
        description="Return each token's log-probability and this many alternatives.",
    )
    echo: bool | None = Field(
        None, description="Put the prompt before the text, also in log-probabilities."
    )


@dataclass(slots=True)
class CompletionLogprobs:
    """OpenAI's older form: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@dataclass(slots=True)
class CompletionChoice:
    """One completion: completion j of prompt i is choice i*n + j."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    uncertainty: Uncertainty | None = None
    repetition: RepetitionReport | None = None


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
    kv_transfer_params: dict[str, Any] | None = None


class CompletionChunkChoice(msgspec.Struct):
    """A chunk's part of one choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    uncertainty: Uncertainty | msgspec.UnsetType = msgspec.UNSET
    repetition: RepetitionReport | msgspec.UnsetType = msgspec.UNSET


class CompletionChunk(msgspec.Struct, kw_only=True):
    """A `data:` line of a stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
