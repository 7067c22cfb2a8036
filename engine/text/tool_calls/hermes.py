"""Hermes 2 and 3, Qwen 2.5, Qwen 3 and many others.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.call_object import CallObjectParser
from engine.text.tool_calls.parser import CallSyntax, NotACall

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


class HermesParser(CallObjectParser):
    """Reads objects between tags, anywhere in the text. A call without its closing tag counts,
    too."""

    markers = (_OPENING, _CLOSING)
    syntax = CallSyntax(
        begin='<tool_call>\n{{"name": "{name}", "arguments": ',
        end="}\n</tool_call>",
        trigger="<tool_call>",
        separator="\n",
    )

    def _calls(self) -> Waiting[None]:
        self._known_only = False
        while (yield from self._plain_text(_OPENING)):
            num_before = self._num_calls
            try:
                yield from self._call_objects(_CLOSING)
            except NotACall:
                self._say_held()
            if self._num_calls > num_before:
                yield from self._skip_space()
                self._held = []
                yield from self._skip(_CLOSING)
