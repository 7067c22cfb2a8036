"""Calls of models that are told to write them as JSON, by our own prompt or by their template.

    {"name": "get_weather", "arguments": {"city": "Paris"}}

Also an array of such objects, a fenced block of code, or `<tool_call>` around them.
"""

import contextlib

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.call_object import CallObjectParser
from engine.text.tool_calls.parser import CallSyntax, NotACall

_FRAMES = {"<tool_call>": "</tool_call>", "```json": "```", "```": "```"}


class JsonCallsParser(CallObjectParser):
    """Reads objects of known functions, at the beginning of the answer or in a frame."""

    markers = ("<tool_call>", "</tool_call>")
    syntax = CallSyntax(
        begin='{{"name": "{name}", "arguments": ', end="}", trigger='{"name": "', separator="\n"
    )

    def _calls(self) -> Waiting[None]:
        yield from self._skip_space()
        yield from self._objects((yield from self._skip_held(*_FRAMES)))
        while frame := (yield from self._plain_text(*_FRAMES)):
            yield from self._objects(frame)

    def _objects(self, frame: str) -> Waiting[None]:
        num_before = self._num_calls
        closing = _FRAMES.get(frame)
        with contextlib.suppress(NotACall):
            yield from self._call_objects(*([closing] if closing else []))
        self._say_held()
        if closing and self._num_calls > num_before:
            yield from self._skip(closing)
