"""Llama 3.1 to 3.3: the whole answer is one or more calls, perhaps after a special token.

<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": ...}
"""

import contextlib

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.call_object import CallObjectParser
from engine.text.tool_calls.parser import CallSyntax, NotACall

_TAG = "<|python_tag|>"


class Llama3JsonParser(CallObjectParser):
    """Reads objects at the beginning of the answer and after each tag; those without a tag must
    name a known function, because any answer may be JSON."""

    markers = (_TAG,)
    syntax = CallSyntax(
        begin='{{"name": "{name}", "parameters": ', end="}", trigger='{"name": "', separator="; "
    )

    def _calls(self) -> Waiting[None]:
        yield from self._skip_space()
        self._known_only = not (yield from self._skip_held(_TAG))
        yield from self._objects()
        while (yield from self._plain_text(_TAG)):
            self._known_only = False
            yield from self._objects()

    def _objects(self) -> Waiting[None]:
        with contextlib.suppress(NotACall):
            yield from self._call_objects(_TAG)
        self._say_held()
