"""Parts of answers that several routes share.

They are dataclasses, which FastAPI documents and msgspec encodes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class PromptTokensDetails:
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


@dataclass(slots=True)
class CompletionTokensDetails:
    """The kinds of tokens in an answer."""

    reasoning_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """The tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = field(
        default_factory=CompletionTokensDetails
    )


@dataclass(slots=True, kw_only=True)
class InputTokens:
    """The number of tokens in a conversation."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@dataclass(slots=True, kw_only=True)
class RenderedPrompt:
    """The tokens that the model would read for a prompt, in vLLM's words."""

    request_id: str
    model: str
    token_ids: list[int]


@dataclass(slots=True, kw_only=True)
class StoredList:
    """An empty list of stored objects, from a server that stores none."""

    object: Literal["list"] = "list"
    data: list[Any] = field(default_factory=list)
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@dataclass(slots=True)
class PromptLogprob:
    """A candidate for a prompt position, as vLLM writes it."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class TextSpan:
    """Consecutive tokens of a text that were unlikely.

    Attributes:
        tokens: index of the first token, and of the token after the last.
        characters: the same range in characters of the text.
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
    """How many different things the answers of a request say.

    Attributes:
        entropy: the entropy of the clusters' shares, in nats.
        clusters: the cluster's number for each choice.
        error: why the answers could not be compared; `entropy`, `num_clusters` and `clusters` are
            null then.
    """

    entropy: float | None
    num_clusters: int | None
    clusters: list[int] | None
    threshold: float
    embedding_model: str
    error: str | None = None


@dataclass(slots=True)
class RepetitionReport:
    """The longest stretch of a text that repeats the same tokens; ranges as in `TextSpan`."""

    pattern_size: int
    tokens: list[int]
    characters: list[int]


PromptLogprobs = list[dict[int, PromptLogprob] | None]


@dataclass(slots=True)
class ErrorDetail:
    """The cause of a failure."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(slots=True)
class ErrorAnswer:
    """The body of every answer with a status other than 2xx."""

    error: ErrorDetail


_ERRORS = {
    400: "A field has a wrong value, or the prompt does not fit the context.",
    401: "The API key is missing or wrong.",
    404: "No such model is served.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; see Retry-After.",
    500: "The server failed.",
    503: "The model is loading, failed, or the server is shutting down; see Retry-After.",
}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route's failures; without arguments, for all of them."""
    return {s: {"model": ErrorAnswer, "description": _ERRORS[s]} for s in statuses or _ERRORS}


def change_answers(conflict: str) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for failures of a route that changes what is served.

    Args:
        conflict: the description of its 409.
    """
    return {
        403: {"model": ErrorAnswer, "description": "The server does not allow this."},
        409: {"model": ErrorAnswer, "description": conflict},
        **error_answers(400, 401, 404, 413, 415, 503),
    }


def whole_answer(model: type, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route that answers whole, and fails as in `error_answers`."""
    return {200: {"model": model}, **error_answers(*statuses)}


def stream_answer(
    whole: type, chunk: str, *, done: bool = True, is_image: bool = False
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route that answers whole or as a stream of chunks, which ends
    with `[DONE]` if `done`. A request for an image can be cancelled by its id."""
    events = {
        # One event, as FastAPI documents its own streams; `schema` would be read as the whole body.
        "itemSchema": {
            "type": "object",
            "properties": {"data": {"type": "string"}},
            "required": ["data"],
        },
        "example": 'data: {"object": ...}\n\n' + "data: [DONE]\n\n" * done,
    }
    answer = {
        "model": whole,
        "description": f"The answer; with `stream` server-sent events, each a {chunk}"
        + ", then `[DONE]`" * done
        + ". A failure after the first byte is an event with `error`.",
        "content": {"text/event-stream": events},
    }
    cancelled = {"model": ErrorAnswer, "description": "Cancelled by its id."}
    return {200: answer, **error_answers(), **({499: cancelled} if is_image else {})}
