"""`cache_control`: places up to which a conversation stays cached for some time."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.errors import InvalidParameter
from server.dialects.anthropic.convert import chat_body
from server.dialects.anthropic.protocol import (
    TTL_S,
    Block,
    CacheControl,
    ImageBlock,
    MessagesRequest,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.protocol.variants import read_model
from server.text.cache_marks import MARK, CacheMark

MAX_MARKS = 4


def cache_marks(body: MessagesRequest) -> list[CacheMark]:
    """The last place of each time to live.

    Raises:
        InvalidParameter: there are more places than allowed, or one is not valid.
    """
    places = list(_places(body))
    if len(places) > MAX_MARKS:
        raise InvalidParameter(
            f"{len(places)} blocks have cache_control; the limit is {MAX_MARKS}; leave it out of "
            f"the others",
            param="cache_control",
        )
    last = {TTL_S[control.ttl or "5m"]: marked for marked, control in places}
    if body.cache_control is not None:
        last[TTL_S[body.cache_control.ttl or "5m"]] = body
    return [CacheMark(chat_body(marked), seconds) for seconds, marked in last.items()]


def _places(body: MessagesRequest) -> Iterator[tuple[MessagesRequest, CacheControl]]:
    """Each block with `cache_control`, in the order of the prompt: the body with a mark behind the
    block, and the control."""
    for index, tool in enumerate(body.tools or ()):
        if tool.get("cache_control") is not None:
            path = ("tools", index, "cache_control")
            control = read_model(CacheControl, tool["cache_control"], path)
            described = {**tool, "description": f"{tool.get('description') or ''}{MARK}"}
            yield _changed(body, "tools", index, [described]), control
    if isinstance(body.system, list):
        for index, text in enumerate(body.system):
            if text.cache_control is not None:
                yield _changed(body, "system", index, _marked(text)), text.cache_control
    for number, message in enumerate(body.messages):
        for index, block in enumerate(message.content):
            if getattr(block, "cache_control", None) is not None:
                content = [*message.content[:index], *_marked(block), *message.content[index + 1 :]]
                copy = message.model_copy(update={"content": content})
                yield _changed(body, "messages", number, [copy]), block.cache_control


def _changed(
    body: MessagesRequest, field: str, index: int, instead: Sequence[Any]
) -> MessagesRequest:
    items = getattr(body, field)
    changed = [*items[:index], *instead, *items[index + 1 :]]
    return body.model_copy(update={field: changed, "stream": None})


def _marked(block: Block) -> list[Block]:
    """A block with a mark at its end, or behind it."""
    mark = TextBlock(type="text", text=MARK)
    match block:
        case TextBlock():
            return [block.model_copy(update={"text": block.text + MARK})]
        case ToolUseBlock():
            return [block.model_copy(update={"input": {**block.input, MARK: ""}})]
        case ToolResultBlock(content=list() as parts):
            return [block.model_copy(update={"content": [*parts, mark]})]
        case ToolResultBlock():
            return [block.model_copy(update={"content": f"{block.content or ''}{MARK}"})]
        case ImageBlock():
            return [block, mark]
    return [block]
