"""Bodies of Anthropic's routes. Values that become fields of OpenAI's bodies are checked there."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from engine.errors import InvalidParameter
from server.protocol.common import (
    MAX_TOKEN_COUNT,
    NO_MODEL_READS,
    ModelRequest,
    WireModel,
    check_num_parts,
)
from server.protocol.one_text import OneTextRequest
from server.protocol.tools import left_out_tools
from server.protocol.variants import read_model, read_variant

MAX_MESSAGES = 4096
MAX_STOP_SEQUENCES = 16

_NO_EFFECT: Mapping[str, str] = {
    "metadata": "names the end user to Anthropic's abuse monitoring",
    "service_tier": "chooses Anthropic's capacity",
    "inference_geo": "chooses where Anthropic computes",
    "speed": "chooses Anthropic's capacity",
    "diagnostics": "asks about Anthropic's cache",
    "user_profile_id": "names the end user to Anthropic",
    "workspace_id": "names a workspace of Anthropic's",
    "context_management": "edits contexts that are longer than Anthropic's models take",
}
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "thread": (False,),
}
_REFUSED_BLOCKS = {
    "image": "images can only be in messages of the user and in results of tools",
    "document": NO_MODEL_READS,
    "": (
        "this type of block is not supported here; blocks can be text, image, tool_use, "
        "tool_result or thinking"
    ),
}


TTL_S = {"5m": 300, "1h": 3600}
"""The times to live of `cache_control`, in seconds."""


class CacheControl(WireModel):
    """Asks to keep the conversation up to this block cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = Field(None, description="How long. Default 5m.")


class TextBlock(WireModel):
    """A block of text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ImageSource(WireModel):
    """Where a picture is."""

    type: Literal["base64", "url"]
    media_type: str | None = Field(None, max_length=64, description="The file itself decides.")
    data: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        name = "data" if self.type == "base64" else "url"
        if getattr(self, name) is None:
            raise PydanticCustomError("source", "needs {name}", {"name": name})
        return self


class ImageBlock(WireModel):
    """A picture, for models that take them."""

    type: Literal["image"]
    source: ImageSource
    cache_control: CacheControl | None = None


class ToolUseBlock(WireModel):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: str = Field(max_length=256)
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ThinkingBlock(WireModel):
    """The assistant's reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    """Reasoning that only Anthropic can read; it is left out."""

    type: Literal["redacted_thinking"]


def _read_blocks(
    value: Any,
    variants: Mapping[str, type[TextBlock | ImageBlock]],
    path: tuple[int | str, ...],
) -> Any:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        blocks = " and ".join(variants)
        raise PydanticCustomError("blocks", f"must be a string or an array of blocks of {blocks}")
    return [
        read_variant(block, variants, (*path, index), refused=_REFUSED_BLOCKS)
        for index, block in enumerate(value)
    ]


_TEXTS: Mapping[str, type[TextBlock | ImageBlock]] = {"text": TextBlock}
_PARTS: Mapping[str, type[TextBlock | ImageBlock]] = {**_TEXTS, "image": ImageBlock}
_TextBlocks = Annotated[list[TextBlock], Field(max_length=64)]


class ToolResultBlock(WireModel):
    """The result of a called tool."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=256)
    content: Annotated[
        str | list[TextBlock | ImageBlock] | None,
        PlainValidator(
            lambda value: _read_blocks(value, _PARTS, ("content",)),
            json_schema_input_type=str | _TextBlocks | None,
        ),
    ] = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = (
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
)

_BLOCKS: Mapping[str, Mapping[str, type[Block]]] = {
    "user": {**_PARTS, "tool_result": ToolResultBlock},
    "assistant": {
        "text": TextBlock,
        "tool_use": ToolUseBlock,
        "thinking": ThinkingBlock,
        "redacted_thinking": RedactedThinkingBlock,
    },
}


class Message(WireModel):
    """A turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[
        Any,
        PlainValidator(
            lambda value: value,
            json_schema_input_type=str | _TextBlocks,
        ),
    ]


def _read_messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise PydanticCustomError(
            "messages", "must be an array of 1 to {most} messages", {"most": MAX_MESSAGES}
        )
    messages: list[Message] = []
    num_blocks = 0
    for index, one in enumerate(value):
        path = ("messages", index)
        message = read_model(Message, one, path)
        content = message.content
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or len(content) > MAX_MESSAGES:
            raise InvalidParameter(
                f"messages[{index}].content: must be a string or an array of blocks",
                param=f"messages[{index}].content",
            )
        num_blocks += len(content)
        check_num_parts(num_blocks, f"messages[{index}].content")
        message.content = [
            read_variant(
                block, _BLOCKS[message.role], (*path, "content", i), refused=_REFUSED_BLOCKS
            )
            for i, block in enumerate(content)
        ]
        messages.append(message)
    return messages


class ToolChoice(WireModel):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=256)
    disable_parallel_tool_use: bool | None = None


class Thinking(WireModel):
    """Whether a model that can reason does so. How long it reasons is up to the model."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, le=MAX_TOKEN_COUNT)
    display: str | None = Field(None, max_length=64)


class OutputConfig(WireModel):
    """The form of the text, and the effort."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = Field(None, max_length=64)


class ConversationFields(ModelRequest):
    """The conversation before a message; shared with `/v1/messages/count_tokens`."""

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED

    messages: Annotated[
        list[Message],
        PlainValidator(
            _read_messages,
            json_schema_input_type=Annotated[list[Message], Field(min_length=1, max_length=64)],
        ),
    ] = Field(
        description="Turns; neighbours with the same role count as one turn. If the last turn is "
        "the assistant's, it is continued."
    )
    system: Annotated[
        str | list[TextBlock] | None,
        PlainValidator(
            lambda value: _read_blocks(value, _TEXTS, ("system",)),
            json_schema_input_type=str | _TextBlocks | None,
        ),
    ] = Field(None, description="The system message.")
    tools: list[dict[str, Any]] | None = Field(
        None,
        max_length=4096,
        description="Tools that the model may call. Tools that Anthropic defines are left out.",
    )
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = Field(
        None, max_length=64, description="Older clients' name for `output_config.format`."
    )

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.output_format not in (None, self.form):
            raise InvalidParameter(
                "output_format and output_config.format mean the same and differ; send one of them",
                param="output_format",
            )
        return self

    @property
    def form(self) -> dict[str, Any] | None:
        """The requested form of the text."""
        form = None if self.output_config is None else self.output_config.format
        return self.output_format if form is None else form

    def ignored_fields(self) -> list[str]:
        return [*super().ignored_fields(), *left_out_tools(self.tools, "custom")]


class CountTokensRequest(ConversationFields):
    """A conversation whose tokens are counted."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": "Write one sentence about the sea."}]
            }
        }
    )


class MessagesRequest(ConversationFields, OneTextRequest):
    """A conversation whose next message is written."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "max_tokens": 64,
                "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
            }
        }
    )

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **OneTextRequest._unsupported,
        **_UNSUPPORTED,
    }
    prompt_field: ClassVar[str] = "messages"

    max_tokens: int = Field(ge=1, le=MAX_TOKEN_COUNT, description="Most tokens to generate.")
    cache_control: CacheControl | None = Field(
        None, description="Asks to keep the whole conversation cached."
    )
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(
        None, max_length=MAX_STOP_SEQUENCES, description="Strings that end the message."
    )
