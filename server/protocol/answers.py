"""What the answers of several routes share.

Dataclasses, which FastAPI documents and msgspec encodes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class PromptTokensDetails:
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


@dataclass(slots=True)
class CompletionTokensDetails:
    """What the answers' tokens are."""

    reasoning_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = field(
        default_factory=CompletionTokensDetails
    )


@dataclass(slots=True, kw_only=True)
class InputTokens:
    """Tokens that a conversation comes to."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@dataclass(slots=True, kw_only=True)
class StoredList:
    """A list of what is stored, where nothing is."""

    object: Literal["list"] = "list"
    data: list[Any] = field(default_factory=list)
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@dataclass(slots=True)
class PromptLogprob:
    """One candidate for a prompt position, as vLLM writes it."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class TextSpan:
    """Tokens of a text that were unlikely, one after the other.

    Attributes:
        tokens: the first one's number, and that of the one behind the last.
        characters: the same of the text that was written.
    """

    tokens: list[int]
    characters: list[int]
    min_logprob: float


@dataclass(slots=True)
class Uncertainty:
    """How sure the model was of a text's tokens; means are null if it has none."""

    num_tokens: int
    mean_logprob: float | None
    mean_entropy: float | None
    mean_varentropy: float | None
    low_confidence_spans: list[TextSpan]


@dataclass(slots=True, kw_only=True)
class SemanticEntropy:
    """How many things the answers of a request say.

    Attributes:
        entropy: of the clusters' shares, in nats.
        clusters: of each choice the number of its cluster.
        error: why the answers could not be compared: these three are null then.
    """

    entropy: float | None
    num_clusters: int | None
    clusters: list[int] | None
    threshold: float
    embedding_model: str
    error: str | None = None


@dataclass(slots=True)
class RepetitionReport:
    """The longest stretch of a text that says the same tokens over and over; ranges as in
    `TextSpan`."""

    pattern_size: int
    tokens: list[int]
    characters: list[int]


PromptLogprobs = list[dict[int, PromptLogprob] | None]


@dataclass(slots=True)
class ErrorDetail:
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(slots=True)
class ErrorAnswer:
    """The body of every answer other than 2xx."""

    error: ErrorDetail


_ERRORS = {
    400: "A field has a bad value, or the prompt does not fit the context.",
    401: "The API key is missing or wrong.",
    404: "No such model is served.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; see Retry-After.",
    500: "The server failed.",
    503: "The model is loading, failed, or the server is shutting down; see Retry-After.",
}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for the failures of a route; without arguments all of them."""
    return {s: {"model": ErrorAnswer, "description": _ERRORS[s]} for s in statuses or _ERRORS}


def stream_answer(whole: type, chunk: str, *, done: bool = True) -> dict[str, Any]:
    """FastAPI's `responses` entry of a route that answers whole or as a stream of chunks, then
    `[DONE]` if `done`."""
    events = {
        # One event, as FastAPI documents its own streams; `schema` would be read as the whole body.
        "itemSchema": {
            "type": "object",
            "properties": {"data": {"type": "string"}},
            "required": ["data"],
        },
        "example": 'data: {"object": ...}\n\n' + "data: [DONE]\n\n" * done,
    }
    return {
        "model": whole,
        "description": f"The answer; with `stream` server-sent events, each a {chunk}"
        + ", then `[DONE]`" * done
        + ". A failure after the first byte is an event with `error`.",
        "content": {"text/event-stream": events},
    }
