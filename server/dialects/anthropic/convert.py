"""Converts Anthropic's bodies to OpenAI's. All functions are pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidParameter
from server.dialects.anthropic.protocol import (
    Block,
    ConversationFields,
    ImageBlock,
    Message,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.dialects.dialect import openai_body
from server.protocol.chat import ChatCompletionRequest
from server.protocol.tokenize import TokenizeRequest
from server.protocol.tools import own_tools

OWN_NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice",
    "function.name": "name",
    "function.description": "description",
    "function.parameters": "input_schema",
    "function.strict": "strict",
}
"""OpenAI's field names → Anthropic's, for messages."""

Content = str | list[dict[str, Any]]
"""The content of a message of OpenAI's: a text, or its parts."""

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: MessagesRequest) -> ChatCompletionRequest:
    """OpenAI's body for a message.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    fields: dict[str, Any] = {
        **_conversation(body),
        "parallel_tool_calls": _parallel(body),
        **body.text_fields(_response_format(body.form), "output_config.format"),
        "max_tokens": body.max_tokens,
        "stop": [*(body.stop_sequences or ()), *(body.stop or ())] or None,
        "stream": body.stream,
        "tool_choice": _tool_choice(body),
    }
    if body.stream:
        fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return openai_body(ChatCompletionRequest, fields)


def count_body(body: ConversationFields) -> TokenizeRequest:
    """OpenAI's body for a conversation that is only counted."""
    return openai_body(TokenizeRequest, _conversation(body))


def _conversation(body: ConversationFields) -> dict[str, Any]:
    messages = _merged([one for message in body.messages for one in _messages(message)])
    if body.system:
        messages.insert(0, {"role": "system", "content": _content(body.system)})
    continues = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    return {
        "model": body.model,
        "messages": messages,
        "continue_final_message": continues or None,
        "tools": own_tools(body.tools, "custom", _function),
        "reasoning_effort": _effort(body),
    }


def _messages(message: Message) -> list[dict[str, Any]]:
    """OpenAI's messages for one of Anthropic's. Results of tools come first, because they belong to
    the calls before."""
    blocks: Sequence[Block] = message.content
    if message.role == "assistant":
        return [_assistant(blocks)]
    results = [
        {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": _content(block.content or ""),
        }
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    parts = [block for block in blocks if isinstance(block, TextBlock | ImageBlock)]
    if parts or not results:
        results.append({"role": "user", "content": _content(parts)})
    return results


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": block.input},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": _content(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _merged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with neighbours of the same role joined."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if last.get("role") != message["role"] or message["role"] == "tool":
            merged.append(message)
            continue
        last["content"] = _joined(last["content"], message["content"])
        for name, join in (("reasoning_content", ""), ("tool_calls", [])):
            if name in message:
                last[name] = last.get(name, join) + message[name]
    return merged


def _content(content: str | Sequence[TextBlock | ImageBlock]) -> Content:
    if isinstance(content, str):
        return content
    texts = [block.text for block in content if isinstance(block, TextBlock)]
    if len(texts) == len(content):
        return "\n\n".join(texts)
    return [_part(block) for block in content]


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if source.type == "url" else f"data:image;base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _joined(*contents: Content) -> Content:
    given = [content for content in contents if content]
    texts = [content for content in given if isinstance(content, str)]
    if len(texts) == len(given):
        return "\n\n".join(texts)
    parts: list[dict[str, Any]] = []
    for content in given:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts += content
    return parts


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    return {name: value for name, value in function.items() if value is not None}


def _tool_choice(body: MessagesRequest) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidParameter(
                "tool_choice of type tool needs a name; name one of the tools", param="tool_choice"
            )
        return {"type": "function", "function": {"name": choice.name}}
    return _CHOICES[choice.type]


def _parallel(body: MessagesRequest) -> bool | None:
    choice = body.tool_choice
    return False if choice is not None and choice.disable_parallel_tool_use else None


def _response_format(format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if format is None:
        return None
    if format.get("type") != "json_schema":
        return dict(format)
    schema = {"name": "output", "schema": format.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _effort(body: ConversationFields) -> str | None:
    """The reasoning effort, for models that have this option."""
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none"
    if body.output_config is not None and body.output_config.effort is not None:
        return body.output_config.effort
    return "medium" if body.thinking is not None and body.thinking.type == "enabled" else None
