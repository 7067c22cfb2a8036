"""Bodies of `POST /v1/chat/completions`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.answers import (
    PromptLogprobs,
    RepetitionReport,
    SemanticEntropy,
    Uncertainty,
    Usage,
)
from server.protocol.common import (
    NO_MODEL_READS,
    NumAlternatives,
    SamplingRequest,
    TokenLimit,
    WireModel,
    check_num_parts,
)
from server.protocol.kv_transfer import KvTransferFields
from server.protocol.signal_fields import MeaningFields, check_meanings
from server.protocol.tools import AnswerToolCall, ToolCallDelta, ToolOptions, ToolUse

_TEXT_PART_TYPES = ("text", "refusal")  # each is also the key that holds the text
_PICTURE_PART_TYPES = ("image_url", "input_image")
_REFUSED_PART_TYPES = ("input_audio", "input_file", "audio", "video", "file")  # or their beginnings
_MAX_MESSAGES = 4096
_MAX_CALLS = 4096
_MAX_ARGUMENT_VALUES = 1 << 18
"""The most values in the arguments of all calls, counted by their commas. Texts with more are
longer than models read, and other conversations would wait while the template's process parses
them."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(WireModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class RefusalPart(WireModel):
    """An earlier refusal of the assistant, treated as text."""

    type: Literal["refusal"]
    refusal: str


def _read_content(value: Any) -> str | list[dict[str, str]] | None:
    """The content as text or parts: text, or a picture with its URL. It is read in one pass, with
    one message for all possible mistakes."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or an array of content parts")
    parts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in _TEXT_PART_TYPES else None
        url = part.get("image_url") if kind in _PICTURE_PART_TYPES else None
        if isinstance(url, dict):
            url = url.get("url")
        if isinstance(text, str):
            parts.append({"type": "text", "text": text})
        elif isinstance(url, str):
            parts.append({"type": "image", "url": url})
        else:
            raise PydanticCustomError(
                "content_part",
                "part {index} must have type text, and a string as its text, or type image_url, "
                "and a string as its image_url.url",
                {"index": index},
            )
    return parts


Content = Annotated[
    str | list[dict[str, str]] | None,
    PlainValidator(
        _read_content,
        # Without images, which most models refuse.
        json_schema_input_type=str
        | Annotated[list[TextPart | RefusalPart], Field(max_length=_MAX_MESSAGES)]
        | None,
    ),
]


class FunctionCall(WireModel):
    """A call that the assistant made."""

    name: str = Field(max_length=256)
    arguments: str | dict[str, Any] = Field(description="JSON, as text or as an object.")


class ToolCall(WireModel):
    """An earlier call in an assistant message; handed to the chat template."""

    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(WireModel):
    """A message. Fields that are not listed are passed to the template."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
                {
                    "required": ["tool_calls"],
                    "properties": {
                        "role": {"const": "assistant"},
                        "tool_calls": {"type": "array", "minItems": 1},
                    },
                },
            ]
        }
    )

    role: Role
    content: Content = Field(
        None,
        description="Text, or parts of text. Models that take images also take parts of the form "
        '`{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}`.',
    )
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCall] | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)
    refusal: str | None = Field(None, description="Text of an earlier refusal.")

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.role not in ("user", "tool") and any(self.pictures()):
            raise PydanticCustomError(
                "content", "images can only be in messages of the roles user and tool"
            )
        from_assistant = self.role == "assistant" and (self.tool_calls or self.refusal)
        if self.content is None and not from_assistant:
            raise PydanticCustomError(
                "content",
                "content is required; only an assistant's message with tool calls may omit it",
            )
        return self

    def pictures(self) -> Iterator[dict[str, str]]:
        """The parts that are pictures, each with its `url`."""
        parts = self.content if isinstance(self.content, list) else ()
        return (part for part in parts if part["type"] == "image")

    def text(self) -> str:
        """The message's text; parts are joined by line breaks, as in templates that take only
        text."""
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content if part["type"] == "text")
        return self.content or self.refusal or ""


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]


def check_parts(messages: Any) -> None:
    """Refuse audio, video and files in messages, and more parts than can be read at once.

    Raises:
        InvalidParameter: there are too many parts or calls, or too much in their arguments.
        UnsupportedFeature: names the part.
    """
    num_parts = num_calls = num_values = 0
    for i, message in enumerate(messages[:_MAX_MESSAGES] if isinstance(messages, list) else ()):
        if not isinstance(message, Mapping):
            continue
        calls = message.get("tool_calls")
        num_calls += len(calls) if isinstance(calls, list) else 0
        if num_calls > _MAX_CALLS:
            raise InvalidParameter(
                f"the messages have more than {_MAX_CALLS} tool calls in total, the limit; leave "
                "some out",
                param=f"messages[{i}].tool_calls",
            )
        num_values += sum(map(_num_values, calls)) if isinstance(calls, list) else 0
        if num_values > _MAX_ARGUMENT_VALUES:
            raise InvalidParameter(
                f"the arguments of tool calls hold more than {_MAX_ARGUMENT_VALUES} values in "
                "total, the limit; leave some out",
                param=f"messages[{i}].tool_calls",
            )
        content = message.get("content")
        if not isinstance(content, list):
            continue
        num_parts += len(content)
        check_num_parts(num_parts, f"messages[{i}].content")
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and kind.startswith(_REFUSED_PART_TYPES):
                raise UnsupportedFeature(
                    NO_MODEL_READS,
                    param=f"messages[{i}].content[{j}]",
                )


def _num_values(call: Any) -> int:
    """A lower bound of the values in a call's arguments; 0 for anything that is not a call."""
    match call:
        case {"function": {"arguments": str(arguments)}}:
            return arguments.count(",")
    return 0


ReasoningEffort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"],
    Field(json_schema_extra={"maxLength": 8}),
]


class ChatTemplateOptions(ToolOptions):
    """How messages become a prompt; shared with `/tokenize`."""

    add_generation_prompt: bool | None = Field(
        None,
        description="End the prompt where the assistant's answer begins. Default true, or false "
        "with continue_final_message.",
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message instead of answering it. Default false."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, max_length=64, description="More variables for the chat template."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="How much to reason, for models whose template has this option. If the "
        "template can only switch reasoning on or off, none switches it off and all "
        "others on.",
    )

    @model_validator(mode="after")
    def _check_ending(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidParameter(
                "add_generation_prompt and continue_final_message cannot both be true; leave one "
                "out",
                param="continue_final_message",
            )
        return self


class ChatCompletionRequest(
    SamplingRequest, ChatTemplateOptions, ToolUse, MeaningFields, KvTransferFields
):
    """OpenAI's chat request with vLLM's additions."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
                "max_completion_tokens": 64,
            }
        }
    )

    prompt_field: ClassVar[str] = "messages"

    messages: Messages
    max_tokens: TokenLimit | None = Field(
        None,
        description="Most tokens to generate. Default, and -1: as many as the context has room "
        "for.",
    )
    n_predict: TokenLimit | None = Field(None, description="llama.cpp's name for max_tokens.")
    logprobs: bool | None = Field(
        None, description="Return the log-probability of each token. Default false."
    )
    top_logprobs: NumAlternatives | None = Field(
        None,
        description="Alternatives per token; only with logprobs.",
    )
    echo: bool | None = Field(
        None, description="Put the last message before the answer if the assistant wrote it."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_parts(data.get("messages"))
        return data

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("top_logprobs needs logprobs: true", param="top_logprobs")
        check_meanings(self, self.num_choices, is_stream=bool(self.stream))
        return self


@dataclass(slots=True)
class TopLogprob:
    """A candidate at a position."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(slots=True)
class TokenLogprobEntry:
    """A token of the text, with the likeliest candidates."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


@dataclass(slots=True)
class ChatLogprobs:
    """Log-probabilities, one entry per token."""

    content: list[TokenLogprobEntry]
    refusal: None = None


@dataclass(slots=True, kw_only=True)
class AnswerMessage:
    """The message that the assistant wrote.

    Attributes:
        content: null if there are only calls or reasoning and no text.
        reasoning: the same as `reasoning_content`, by vLLM's newer name.
    """

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[AnswerToolCall] | None = None


@dataclass(slots=True)
class ChatChoice:
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    token_ids: list[int] | None = None
    uncertainty: Uncertainty | None = None
    repetition: RepetitionReport | None = None


@dataclass(slots=True, kw_only=True)
class ChatCompletion:
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    semantic_entropy: SemanticEntropy | None = None
    kv_transfer_params: dict[str, Any] | None = None


class MessageDelta(msgspec.Struct, omit_defaults=True):
    """The part that a chunk adds to the message."""

    role: str | None = None
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(msgspec.Struct):
    """A chunk's part of one answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    uncertainty: Uncertainty | msgspec.UnsetType = msgspec.UNSET
    repetition: RepetitionReport | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """A `data:` line of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
