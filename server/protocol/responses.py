"""Bodies of `POST /v1/responses`, and its answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.common import MAX_TOKEN_COUNT, NumAlternatives, WireModel
from server.protocol.one_text import OneTextRequest
from server.protocol.response_items import Items
from server.protocol.tools import is_of_type, left_out_tools

_LOGPROBS = "message.output_text.logprobs"

_NO_EFFECT: Mapping[str, str] = {
    "user": "names the end user to OpenAI's abuse monitoring",
    "safety_identifier": "names the end user to OpenAI's abuse monitoring",
    "service_tier": "chooses OpenAI's price and latency tier",
    "prompt_cache_key": "steers OpenAI's cache routing; prefix caching here needs no hint",
    "prompt_cache_options": "steers how OpenAI caches prefixes",
    "max_tool_calls": "bounds calls of tools that OpenAI runs",
    "client_metadata": "tells OpenAI about the client",
}
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **OneTextRequest._unsupported,
    "context_management": ([],),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}

_INSTEAD: Mapping[str, str] = {
    name: f"{name} is not supported here; send {instead}"
    for name, instead in {
        "max_tokens": "max_output_tokens",
        "logprobs": f"include: [{_LOGPROBS!r}]",
        "verbosity": "text.verbosity",
    }.items()
}

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


def _conversation_id(value: Any) -> Any:
    return value.get("id", value) if isinstance(value, dict) else value


ConversationName = Annotated[
    str,
    Field(max_length=256),
    BeforeValidator(_conversation_id, json_schema_input_type=str | dict[str, str]),
]


class TextFormat(WireModel):
    """The requested form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", max_length=1024)
    strict: bool | None = None


class TextOptions(WireModel):
    """Options for the text of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(WireModel):
    """Options for reasoning. There are no summaries: the model's reasoning is returned
    unchanged."""

    effort: str | None = Field(None, max_length=16)
    summary: str | None = Field(None, max_length=16)
    generate_summary: str | None = Field(None, max_length=16)


class ResponseRequest(OneTextRequest):
    """OpenAI's request for a response, with fields of chats that OpenAI's request lacks."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"input": "Write one sentence about the sea.", "max_output_tokens": 64}
        }
    )

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED
    _instead: ClassVar[Mapping[str, str]] = {**OneTextRequest._instead, **_INSTEAD}
    prompt_field: ClassVar[str] = "input"
    limit_field: ClassVar[str] = "max_output_tokens"

    input: Items = Field(description="A text, or items: messages, calls, and results of calls.")
    instructions: str | None = Field(
        None, description="A system message before the conversation, for this response only."
    )
    previous_response_id: str | None = Field(
        None, max_length=256, description="Continue the conversation of a stored response."
    )
    conversation: ConversationName | None = Field(
        None,
        description="Continue this conversation, or `{id}` of it, which then also gets the input "
        "and the output.",
    )
    store: bool | None = Field(
        None,
        description="Keep the response for a while, to be continued or read again. Default true, "
        "if the server keeps responses.",
    )
    background: bool | None = Field(
        None, description="Answer at once, and let the client fetch the response later by its id."
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKEN_COUNT,
        description="Most tokens to generate. Default: as many as the context has room for.",
    )
    text: TextOptions | None = Field(None, description="Format of the text.")
    reasoning: ReasoningOptions | None = Field(None, description="How much to reason.")
    tools: list[dict[str, Any]] | None = Field(
        None,
        max_length=128,
        description="Functions that the model may call. Tools of other types are left out.",
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="auto, none, required, or a function that must be called."
    )
    metadata: Metadata | None = Field(None, description="Returned with the response.")
    include: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None,
        max_length=16,
        description=f"`{_LOGPROBS}` returns the tokens' log-probabilities; OpenAI's other values "
        "have nothing to include here.",
    )
    top_logprobs: NumAlternatives | None = Field(
        None, description=f"Alternatives per token; only with {_LOGPROBS}."
    )

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools that the client runs."""
        return [tool for tool in self.tools or () if is_of_type(tool, "function")]

    def ignored_fields(self) -> list[str]:
        return [*super().ignored_fields(), *left_out_tools(self.tools, "function")]

    @property
    def returns_logprobs(self) -> bool:
        """Whether the client wants log-probabilities."""
        return _LOGPROBS in (self.include or ())

    @model_validator(mode="after")
    def _check_response(self) -> Self:
        if self.background and self.stream:
            raise UnsupportedFeature(
                "a background response cannot be streamed here; leave stream out, and fetch the "
                "response by its id",
                param="stream",
            )
        if self.background and self.store is False:
            raise InvalidParameter(
                "a background response is fetched by its id, so it must be stored; leave store out",
                param="store",
            )
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidParameter(
                "conversation and previous_response_id exclude each other; send one of them",
                param="conversation",
            )
        if self.top_logprobs and not self.returns_logprobs:
            raise InvalidParameter(
                f"top_logprobs needs include: [{_LOGPROBS!r}]",
                param="top_logprobs",
            )
        return self

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise UnsupportedFeature(
                "text.verbosity other than medium is not supported here; leave it out",
                param="text.verbosity",
            )
        return self


ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(slots=True, kw_only=True)
class OutputTextPart:
    """Text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class OutputMessage:
    """A message that the model wrote."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: str
    content: list[OutputTextPart] = field(default_factory=list)


@dataclass(slots=True)
class ReasoningTextPart:
    """A part of the model's reasoning."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


@dataclass(slots=True, kw_only=True)
class OutputReasoning:
    """The model's reasoning before its answer."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: str
    summary: list[Any] = field(default_factory=list)
    content: list[ReasoningTextPart] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class OutputFunctionCall:
    """A function that the model wants called."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: str
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


@dataclass(slots=True)
class InputTokensDetails:
    """Where the input's tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


@dataclass(slots=True)
class OutputTokensDetails:
    """The kinds of tokens in the output."""

    reasoning_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class ResponseUsage:
    """The tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


@dataclass(slots=True)
class ResponseError:
    """Why a response failed."""

    code: str
    message: str


@dataclass(slots=True)
class IncompleteDetails:
    """Why a response ended early."""

    reason: str


@dataclass(slots=True, kw_only=True)
class Response:
    """A response in any state."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem] = field(default_factory=list)
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: dict[str, str] | None = None
    reasoning: dict[str, Any]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str]


@dataclass(slots=True, kw_only=True)
class DeletedResponse:
    """The answer to `DELETE /v1/responses/{id}`."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@dataclass(slots=True, kw_only=True)
class ItemList:
    """A page of a response's input items."""

    object: Literal["list"] = "list"
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool
