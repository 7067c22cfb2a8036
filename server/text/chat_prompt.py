"""Converts a chat's body to the arguments of the model's chat template."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidParameter
from engine.text.chat_format import ChatFormat
from server.protocol.chat import ChatMessage, ChatTemplateOptions
from server.protocol.tools import FunctionTool
from server.text.tool_prompt import with_plain_calls, with_tool_prompt

_RESERVED_NAMES = frozenset(
    ("self", "messages", "tools", "add_generation_prompt", "continue_final_message")
)
_NO_PARAMETERS = {"type": "object", "properties": {}}
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The arguments of `ChatTemplate.render`."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]


def chat_prompt(
    body: ChatTemplateOptions,
    messages: list[ChatMessage],
    chat_format: ChatFormat,
    marker: str = "",
) -> ChatPrompt:
    """Messages and options in the form that templates expect. Parts of calls that the model's
    template does not know become text.

    Args:
        marker: the text by which the template marks the place of a picture.

    Raises:
        InvalidParameter: `chat_template_kwargs` sets something that has its own field, or the
            template does not know `reasoning_effort`.
    """
    prepared = [_template_message(message, marker) for message in messages]
    tools = [_template_tool(tool) for tool in offered_tools(body)]
    options = _template_options(body, chat_format)
    if chat_format.short_call_ids:
        prepared = [_with_short_ids(message) for message in prepared]
    tells_tools = bool(tools) and not chat_format.takes_tools
    if tells_tools or not chat_format.takes_calls:
        prepared = with_plain_calls(prepared)
    if tools and not tells_tools:
        options["tools"] = tools
    elif tools:
        prepared = with_tool_prompt(prepared, tools, takes_system=chat_format.takes_system)
    return ChatPrompt(prepared, options)


def offered_tools(body: ChatTemplateOptions) -> list[FunctionTool]:
    """The functions that the model may call."""
    if getattr(body, "tool_choice", None) == "none":
        return []
    return body.tools or []


def _template_options(body: ChatTemplateOptions, chat_format: ChatFormat) -> dict[str, Any]:
    extra = body.chat_template_kwargs or {}
    if taken := sorted(_RESERVED_NAMES & extra.keys()):
        raise InvalidParameter(
            f"chat_template_kwargs cannot set {taken[0]}, which the server sets itself; leave it "
            "out",
            param="chat_template_kwargs",
        )
    continued = bool(body.continue_final_message)
    begins = body.add_generation_prompt
    return {
        **_reasoning_options(body.reasoning_effort, chat_format),
        **extra,
        "add_generation_prompt": not continued if begins is None else begins,
        "continue_final_message": continued,
    }


def _reasoning_options(effort: str | None, chat_format: ChatFormat) -> dict[str, Any]:
    """The template's options for a reasoning effort.

    Raises:
        InvalidParameter: the template has no such option.
    """
    if effort is None:
        return {}
    options: dict[str, Any] = {}
    if chat_format.takes_effort:
        options["reasoning_effort"] = effort
    if chat_format.thinking_switch is not None:
        options[chat_format.thinking_switch] = effort != "none"
    if not options and effort != "none":
        raise InvalidParameter(
            "this model's chat template has no option for reasoning effort; leave "
            "reasoning_effort out",
            param="reasoning_effort",
        )
    return options


def _template_tool(tool: FunctionTool) -> dict[str, Any]:
    """A function in the form that transformers gives to templates."""
    function = tool.function.model_dump(exclude_none=True, exclude={"strict"})
    return {"type": "function", "function": {**function, "parameters": parameters_of(tool)}}


def parameters_of(tool: FunctionTool) -> dict[str, Any]:
    """The JSON schema of a function's arguments."""
    return tool.function.parameters or _NO_PARAMETERS


def _template_message(message: ChatMessage, marker: str) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, exclude={"tool_calls", "refusal"})
    texts = (message.content, message.refusal, "")
    content = next(text for text in texts if text is not None)
    if isinstance(content, list):
        # Where parts become one text, the marker takes the picture's place.
        picture = {"type": "image", "text": marker}
        content = [part if part["type"] == "text" else picture for part in content]
    fields["content"] = content
    if message.tool_calls:
        fields["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
    return fields


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """The message with short call ids: Mistral's templates refuse the ids that others use."""
    if "tool_call_id" in message:
        message = {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    if "tool_calls" in message:
        calls = [{**call, "id": _short_id(call.get("id", ""))} for call in message["tool_calls"]]
        message = {**message, "tool_calls": calls}
    return message


def _short_id(call_id: str) -> str:
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
