"""Message content as text or as a list of parts, converted to the form that a chat template takes.

Clients send both forms; older templates insert `message['content']` as a string, newer ones loop
over its parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2 import nodes

from engine.errors import UnsupportedFeature

ContentFormat = Literal["string", "parts"]


def detect_content_format(template: nodes.Template) -> ContentFormat:
    """Return `parts` if the parsed template loops over a message's content, as vLLM decides it."""
    names = _content_names(template)
    loops = template.find_all(nodes.For)
    return "parts" if any(_is_content(loop.iter, names) for loop in loops) else "string"


def accepts_strings(template: nodes.Template) -> bool:
    """Whether a template that loops over parts also takes a string, for which it must test."""
    return any(test.name == "string" for test in template.find_all(nodes.Test))


def flatten_content(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy the messages with lists of text parts joined by newlines, as vLLM joins them.

    Raises:
        UnsupportedFeature: a part is not text.
    """
    return [{**m, "content": _joined(m["content"])} if _has_parts(m) else {**m} for m in messages]


def split_content(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy the messages with strings converted to lists of one text part."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m.get("content"), str)
        else {**m}
        for m in messages
    ]


def _has_parts(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("content"), list)


def _joined(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UnsupportedFeature(
                f"content part of type {kind!r:.80} is not supported; this model takes only text "
                f"parts",
                param="messages",
            )
        texts.append(text)
    return "\n".join(texts)


def _content_names(template: nodes.Template) -> frozenset[str]:
    """Return the variables that stand for a message's content; macros call such an argument
    `content`."""
    names = {
        argument.name
        for macro in template.find_all(nodes.Macro)
        for argument in macro.args
        if argument.name == "content"
    }
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return frozenset(names)


def _is_content(node: nodes.Node | None, names: frozenset[str] | set[str]) -> bool:
    """Whether a node is `message.content`, `message['content']`, a name for it, or a filter applied
    to these."""
    match node:
        case nodes.Filter():
            return _is_content(node.node, names)
        case nodes.CondExpr():
            return _is_content(node.expr1, names) or _is_content(node.expr2, names)
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        case nodes.Name():
            return node.name in names
    return False
