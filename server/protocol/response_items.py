"""Items of OpenAI's Responses API: the parts of a conversation that clients send."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator
from pydantic_core import PydanticCustomError

from server.protocol.common import NO_MODEL_READS, WireModel, check_num_parts
from server.protocol.variants import read_variant

MAX_ITEMS = 4096
_MAX_ID_CHARS = 256

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Field(max_length=_MAX_ID_CHARS)]


class InputText(WireModel):
    """A text that the model reads."""

    type: Literal["input_text", "text"]
    text: str


class OutputText(WireModel):
    """A text that the model wrote earlier."""

    type: Literal["output_text"]
    text: str


class Refusal(WireModel):
    """A refusal that the model wrote earlier, treated as text."""

    type: Literal["refusal"]
    refusal: str


class InputImage(WireModel):
    """A picture, for models that take them."""

    type: Literal["input_image"]
    file_id: str | None = Field(None, description="Not supported: there is no file store here.")
    image_url: str = Field(description="A data URL, or a link if the operator allows its host.")
    detail: str | None = Field(None, description="Has no effect.")

    @field_validator("file_id")
    @classmethod
    def _refuse_file(cls, value: str | None) -> None:
        if value is not None:
            raise PydanticCustomError(
                "file_id", "is not supported by this server; send the image itself as image_url"
            )


_Part = InputText | OutputText | Refusal | InputImage
_PARTS: Mapping[str, type[_Part]] = {
    "input_text": InputText,
    "text": InputText,
    "output_text": OutputText,
    "refusal": Refusal,
    "input_image": InputImage,
}


def chat_parts(content: Any, path: tuple[int | str, ...]) -> list[dict[str, Any]]:
    """The parts of a message or of a function's output, as parts of a chat's message.

    Raises:
        InvalidParameter, UnsupportedFeature: a part is neither text nor a picture.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    refused = dict.fromkeys(("input_file", "input_audio"), NO_MODEL_READS)
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        read = read_variant(part, _PARTS, (*path, index), refused=refused)
        match read:
            case InputImage():
                picture = {"image_url": read.image_url, "detail": read.detail or "auto"}
                parts.append({"type": "input_image", **picture})
            case Refusal():
                parts.append({"type": "text", "text": read.refusal})
            case _:
                parts.append({"type": "text", "text": read.text})
    return parts


_ContentParts = Annotated[list[InputText | OutputText | Refusal], Field(max_length=MAX_ITEMS)]


def _is_content(value: Any) -> Any:
    if isinstance(value, str | list):
        return value
    raise PydanticCustomError("content", "must be a string or an array of content parts")


Content = Annotated[Any, PlainValidator(_is_content, json_schema_input_type=str | _ContentParts)]
"""Content, whose parts `chat_parts` reads."""


class MessageItem(WireModel):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Id | None = None
    status: Status | None = None


class FunctionCallItem(WireModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Id
    name: str = Field(min_length=1, max_length=_MAX_ID_CHARS)
    arguments: str = Field(description="JSON text.")
    id: Id | None = None
    status: Status | None = None


class FunctionCallOutputItem(WireModel):
    """The result of a called function."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Id | None = None
    status: Status | None = None


class ReasoningText(WireModel):
    """A piece of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(WireModel):
    """Reasoning that the model wrote earlier. Summaries are not read."""

    type: Literal["reasoning"]
    id: Id | None = None
    summary: list[dict[str, Any]] | None = Field(None, max_length=MAX_ITEMS)
    content: list[ReasoningText] | None = Field(None, max_length=MAX_ITEMS)
    encrypted_content: str | None = None
    status: Status | None = None


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem

_ITEMS: Mapping[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}


def read_items(value: Any, *, field: str = "input") -> list[Item]:
    """The items of a field; a bare text is the user's message.

    Raises:
        InvalidParameter, UnsupportedFeature: names the item.
    """
    if isinstance(value, str):
        return [MessageItem(role="user", content=value)]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_ITEMS:
        raise PydanticCustomError(
            "items", "must be a string or an array of 1 to {most} items", {"most": MAX_ITEMS}
        )
    refused = {
        "item_reference": (
            "references to items are not supported here; send the item itself, or "
            "previous_response_id"
        ),
        "": "this type of item is not supported here; the types are: " + ", ".join(_ITEMS),
    }
    items: list[Item] = []
    num_parts = 0
    for index, item in enumerate(value):
        path = (field, index)
        read = read_variant(item, _ITEMS, path, default="message", refused=refused)
        if isinstance(read, MessageItem | FunctionCallOutputItem):
            inner = "content" if isinstance(read, MessageItem) else "output"
            content = getattr(read, inner)
            num_parts += len(content) if isinstance(content, list) else 1
            check_num_parts(num_parts, f"{field}[{index}].{inner}")
            chat_parts(content, (*path, inner))
        items.append(read)
    return items


Items = Annotated[
    list[Item],
    PlainValidator(
        read_items,
        json_schema_input_type=str | Annotated[list[Item], Field(min_length=1, max_length=64)],
    ),
]
"""A conversation, or its new items."""
