"""Writes calls as plain text, for models whose chat template does not know calls.

The system message lists the functions and says how to call them. Earlier calls become text of the
assistant, in the form that the model must write, and their results become text of the user. The
parser `json` reads the model's answer.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.errors import InvalidParameter

TOOL_PROMPT = """\
You can call functions. Each is given here as a JSON object with its name, what it does, and the \
JSON schema of its arguments:

{functions}

To call one, answer with nothing but a JSON object of this form, and for several calls with one \
such object per line:

{{"name": "<name of the function>", "arguments": {{<its arguments>}}}}

Where no function is needed, answer in plain text."""


def with_tool_prompt(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, takes_system: bool
) -> list[dict[str, Any]]:
    """The conversation with the functions listed in its system message.

    Args:
        tools: the tools in transformers' form.
        takes_system: whether the template has system messages; otherwise the first message lists
            the functions.
    """
    functions = "\n".join(_json(tool["function"]) for tool in tools)
    prompt = TOOL_PROMPT.format(functions=functions)
    first, *rest = messages
    if first["role"] in ("system", "developer") or not takes_system:
        return [{**first, "content": _joined(_text(first), prompt)}, *rest]
    return [{"role": "system", "content": prompt}, *messages]


def with_plain_calls(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with calls and their results as text of the assistant and the user."""
    names: dict[str, str] = {}
    result: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        if calls := message.get("tool_calls"):
            names |= {call.get("id", ""): call["function"]["name"] for call in calls}
            lines = [_call(call["function"]) for call in calls]
            fields = {k: v for k, v in message.items() if k != "tool_calls"}
            message = {**fields, "content": _joined(_text(message), *lines, separator="\n")}
        is_result = message["role"] == "tool"
        if is_result:
            name = message.get("name") or names.get(message.get("tool_call_id", ""), "the function")
            message = {"role": "user", "content": f"Result of {name}: {_text(message)}"}
        if after_result and message["role"] == "user":
            # Many templates want roles to alternate.
            message = {**message, "content": _joined(_text(result.pop()), _text(message))}
        result.append(message)
        after_result = is_result
    return result


def _call(function: dict[str, Any]) -> str:
    """A call as JSON in one line."""
    return f'{{"name": {_json(function["name"])}, "arguments": {_arguments(function)}}}'


def _arguments(function: dict[str, Any]) -> str:
    """A call's arguments as JSON. An object's text is taken unchanged: it may be too long to be
    parsed and written again."""
    given = function["arguments"]
    if isinstance(given, str) and given.lstrip().startswith("{") and _is_json(given):
        return given.strip().replace("\r", " ").replace("\n", " ")
    return _json(given)


def _is_json(text: str) -> bool:
    """Whether a text is JSON. It is not decoded, which makes this a hundred times faster."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _joined(*texts: str, separator: str = "\n\n") -> str:
    return separator.join(text for text in texts if text)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise InvalidParameter(
            "the arguments of a call are nested too deeply; nest them less deeply", param="messages"
        ) from None
