"""The items of a response while they are written, and the events about them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.protocol.responses import (
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    ReasoningTextPart,
)

Event = dict[str, Any]
"""An event without its sequence number. An item in it is shown in its state at that time."""


class Output:
    """Items in the order in which the model writes them; at most the last is open.

    Args:
        unique: the text that makes the items' ids unique.
    """

    def __init__(self, unique: str) -> None:
        self.items: list[OutputItem] = []
        self._unique = unique
        self._open: _OpenText | _OpenCall | None = None

    def add_reasoning(self, text: str) -> list[Event]:
        """Add text to the reasoning."""
        return self._add_text(OutputReasoning, text, ())

    def add_text(self, text: str, logprobs: Sequence[Any] = ()) -> list[Event]:
        """Add text to a message."""
        return self._add_text(OutputMessage, text, logprobs)

    def add_call(self, call_id: str, name: str) -> list[Event]:
        """Begin a call."""
        events = self.close()
        item = OutputFunctionCall(
            id=self._new_id("fc"), call_id=call_id, name=name, status="in_progress"
        )
        self.items.append(item)
        self._open = _OpenCall(item, len(self.items) - 1)
        return [*events, self._open.added()]

    def add_arguments(self, text: str) -> list[Event]:
        """Add text to the arguments of the latest call."""
        assert isinstance(self._open, _OpenCall)
        return [self._open.add(text)]

    def finish(self, status: str) -> list[Event]:
        """End the answer; an answer without items becomes an empty message."""
        events = [] if self.items else self.add_text("")
        return [*events, *self.close(status)]

    def close(self, status: str = "completed") -> list[Event]:
        """End the open item, if there is one."""
        if self._open is None:
            return []
        ended, self._open = self._open, None
        return ended.end(status)

    def _add_text(
        self, kind: type[OutputMessage | OutputReasoning], text: str, logprobs: Sequence[Any]
    ) -> list[Event]:
        events: list[Event] = []
        if not isinstance(self._open, _OpenText) or type(self._open.item) is not kind:
            events = self.close()
            prefix = "msg" if kind is OutputMessage else "rs"
            item = kind(id=self._new_id(prefix), status="in_progress")
            self.items.append(item)
            self._open = _OpenText(item, len(self.items) - 1)
            events += self._open.added()
        return [*events, self._open.add(text, logprobs)]

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._unique}{len(self.items):04x}"


class _OpenText:
    """A message, or reasoning, in the making; it has one part."""

    def __init__(self, item: OutputMessage | OutputReasoning, index: int) -> None:
        self.item = item
        self._index = index
        self._texts: list[str] = []
        self._logprobs: list[Any] = []
        self._part: OutputTextPart | ReasoningTextPart
        if isinstance(item, OutputMessage):
            self._part, self._kind = OutputTextPart(text=""), "response.output_text"
        else:
            self._part, self._kind = ReasoningTextPart(text=""), "response.reasoning_text"

    def added(self) -> list[Event]:
        part = {**self._place(), "part": replace(self._part)}
        return [
            _item_event("added", self._index, self.item),
            {"type": "response.content_part.added", **part},
        ]

    def add(self, text: str, logprobs: Sequence[Any]) -> Event:
        self._texts.append(text)
        self._logprobs += logprobs
        return {
            "type": f"{self._kind}.delta",
            **self._place(),
            "delta": text,
            **self._with_logprobs(logprobs),
        }

    def end(self, status: str) -> list[Event]:
        text = "".join(self._texts)
        self._part.text = text
        if isinstance(self._part, OutputTextPart):
            self._part.logprobs = self._logprobs
        self.item.content = [self._part]  # type: ignore[assignment]
        self.item.status = status
        done = {"text": text, **self._with_logprobs(self._logprobs)}
        return [
            {"type": f"{self._kind}.done", **self._place(), **done},
            {"type": "response.content_part.done", **self._place(), "part": self._part},
            _item_event("done", self._index, self.item),
        ]

    def _place(self) -> Event:
        return {"item_id": self.item.id, "output_index": self._index, "content_index": 0}

    def _with_logprobs(self, logprobs: Sequence[Any]) -> Event:
        return {"logprobs": logprobs} if isinstance(self._part, OutputTextPart) else {}


class _OpenCall:
    """A call in the making."""

    def __init__(self, item: OutputFunctionCall, index: int) -> None:
        self._item = item
        self._index = index
        self._texts: list[str] = []

    def added(self) -> Event:
        return _item_event("added", self._index, self._item)

    def add(self, text: str) -> Event:
        self._texts.append(text)
        place = {"item_id": self._item.id, "output_index": self._index}
        return {"type": "response.function_call_arguments.delta", **place, "delta": text}

    def end(self, status: str) -> list[Event]:
        self._item.arguments = "".join(self._texts)
        self._item.status = status
        done = {
            "type": "response.function_call_arguments.done",
            "item_id": self._item.id,
            "output_index": self._index,
            "name": self._item.name,
            "arguments": self._item.arguments,
        }
        return [done, _item_event("done", self._index, self._item)]


def _item_event(what: str, index: int, item: OutputItem) -> Event:
    return {"type": f"response.output_item.{what}", "output_index": index, "item": replace(item)}
