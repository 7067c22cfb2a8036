"""Converts a request for a response to the chat that it stands for."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from engine.errors import UnsupportedFeature
from server.protocol.chat import ChatCompletionRequest
from server.protocol.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    chat_parts,
)
from server.protocol.responses import ResponseRequest, TextFormat
from server.protocol.tools import is_of_type, own_tools
from server.protocol.variants import read_model

OWN_NAMES: Mapping[str, str] = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "function.name": "name",
    "function.description": "description",
    "function.parameters": "parameters",
    "function.strict": "strict",
}
"""Names of chat fields → names of response fields, for messages."""


class ResponseChat(ChatCompletionRequest):
    """The chat for a response; errors name the fields that the client knows."""

    prompt_field: ClassVar[str] = "input"
    limit_field: ClassVar[str] = "max_output_tokens"


def chat_of(body: ResponseRequest, before: Sequence[Item]) -> ResponseChat:
    """The chat that answers a request.

    Args:
        before: the conversation that it continues.

    Raises:
        InvalidParameter: a value that is allowed in a response is not allowed in a chat.
    """
    messages = chat_messages([*before, *body.input])
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    form = None if body.text is None else _response_format(body.text.format)
    fields: dict[str, Any] = {
        **_tool_fields(body),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.returns_logprobs,
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        **body.text_fields(form, "text.format"),
        "model": body.model,
        "messages": messages,
        "stream": body.stream,
        "stream_options": {"include_usage": True} if body.stream else None,
    }
    return read_model(ResponseChat, fields, ())


def chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: consecutive reasoning, text and calls of the assistant become one
    message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                message = _assistant(messages, ends_with=("content", "tool_calls"))
                message["content"] = _content(item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _content(item.content)})
            case ReasoningItem():
                text = "".join(part.text for part in item.content or ())
                if text:
                    messages.append({"role": "assistant", "reasoning_content": text})
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                message = _assistant(messages)
                message.setdefault("tool_calls", []).append(call)
            case FunctionCallOutputItem():
                message = {"role": "tool", "tool_call_id": item.call_id}
                messages.append({**message, "content": _content(item.output)})
    for message in messages:
        if not message.keys() & {"content", "tool_calls"}:
            message["content"] = ""  # reasoning that was cut off
    return messages


def _tool_fields(body: ResponseRequest) -> dict[str, Any]:
    return {
        "tools": own_tools(body.tools, "function", _function),
        "tool_choice": _tool_choice(body.tool_choice),
    }


def _tool_choice(choice: Any) -> Any:
    """The chat's `tool_choice`. Anything that is not one stays as it is, to be refused later.

    Raises:
        UnsupportedFeature: it requires a tool that OpenAI runs.
    """
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return _named_tool(choice)
    mode, tools = choice.get("mode"), choice.get("tools")
    if isinstance(tools, list) and mode == "auto":
        tools = [tool for tool in tools if not _is_foreign(tool)]
        if not tools:
            return "none"
    allowed = [_named_tool(tool) for tool in tools] if isinstance(tools, list) else None
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}


def _named_tool(tool: Any) -> Any:
    if _is_foreign(tool):
        raise UnsupportedFeature(
            "tool_choice requires a tool that is not of type function, and this server runs no "
            "others; name a function, or leave tool_choice out",
            param="tool_choice",
        )
    if not isinstance(tool, dict):
        return tool
    return {"type": tool.get("type"), "function": {"name": tool.get("name")}}


def _is_foreign(tool: Any) -> bool:
    return isinstance(tool, dict) and not is_of_type(tool, "function")


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tool.items() if k != "type" and v is not None}


def _response_format(format: TextFormat | None) -> dict[str, Any] | None:
    if format is None:
        return None
    if format.type != "json_schema":
        return {"type": format.type}
    schema = format.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": schema}


def _assistant(messages: list[dict[str, Any]], ends_with: Collection[str] = ()) -> dict[str, Any]:
    """The unfinished message of the assistant: the last message, or a new one if that already has
    one of these fields."""
    if (
        messages
        and messages[-1]["role"] == "assistant"
        and not messages[-1].keys() & set(ends_with)
    ):
        return messages[-1]
    messages.append({"role": "assistant"})
    return messages[-1]


def _content(content: Any) -> Any:
    parts = chat_parts(content, ())
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
