"""FunctionGemma and Gemma 4, whose calls have a notation of their own.

<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>
<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>
"""

from typing import ClassVar

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.json_scanner import MAX_DEPTH
from engine.text.tool_calls.json_text import bare_value, quoted
from engine.text.tool_calls.parser import MAX_NAME_CHARS, NotACall, ToolCallParser

_MAX_BARE_CHARS = 65_536


class FunctionGemmaParser(ToolCallParser):
    """Reads calls between two tokens, anywhere in the text, and converts arguments to JSON as they
    come."""

    opening: ClassVar[str] = "<start_function_call>"
    closing: ClassVar[str] = "<end_function_call>"
    quote: ClassVar[str] = "<escape>"
    markers = (opening, closing, quote)

    def _calls(self) -> Waiting[None]:
        while (yield from self._plain_text(self.opening)):
            try:
                name = yield from self._name()
            except NotACall:
                self._say_held()
                continue
            index = self._announce(name)
            try:
                yield from self._object(index, depth=1)
            except NotACall:
                self._put(index, "".join(self._held))
                yield from self._rest_of_arguments(index, self.closing)
            self._held = []
            yield from self._pass_space()
            yield from self._skip(self.closing)

    def _name(self) -> Waiting[str]:
        yield from self._skip_space()
        if not (yield from self._skip_held("call:")):
            raise NotACall
        name = ""
        while (char := (yield from self._peek())) != "{":
            if not char or not (char.isalnum() or char in "_-.") or len(name) == MAX_NAME_CHARS:
                raise NotACall
            name += char
            self._hold(self._take(1))
        if not name:
            raise NotACall
        return name

    def _object(self, index: int, depth: int) -> Waiting[None]:
        yield from self._open(index, depth)
        while not (yield from self._skip("}")):
            if (yield from self._skip(self.quote)):
                yield from self._string(index)
                yield from self._pass_space()
            else:
                key = yield from self._bare(":")
                self._put(index, quoted(key.strip()))
            if not (yield from self._skip(":")):
                raise NotACall
            self._put(index, ": ")
            yield from self._value(index, depth)
            yield from self._separator(index, "}")
        self._put(index, "}")

    def _array(self, index: int, depth: int) -> Waiting[None]:
        yield from self._open(index, depth)
        while not (yield from self._skip("]")):
            yield from self._value(index, depth)
            yield from self._separator(index, "]")
        self._put(index, "]")

    def _open(self, index: int, depth: int) -> Waiting[None]:
        if depth > MAX_DEPTH // 4:  # each level takes a few stack frames
            raise NotACall
        self._put(index, self._take(1))
        yield from self._pass_space()

    def _separator(self, index: int, closer: str) -> Waiting[None]:
        yield from self._pass_space()
        if (yield from self._skip(",")):
            yield from self._pass_space()
            self._put(index, "" if (yield from self._next_is(closer)) else ", ")
        elif not (yield from self._next_is(closer)):
            raise NotACall

    def _value(self, index: int, depth: int) -> Waiting[None]:
        yield from self._pass_space()
        if (yield from self._skip(self.quote)):
            yield from self._string(index)
        elif (yield from self._peek()) == "{":
            yield from self._object(index, depth + 1)
        elif (yield from self._peek()) == "[":
            yield from self._array(index, depth + 1)
        else:
            text = yield from self._bare(",}]")
            self._put(index, bare_value(text.strip()))

    def _string(self, index: int) -> Waiting[None]:
        self._put(index, '"')
        while True:
            self._put(index, quoted(self._part_before(self.quote))[1:-1])
            if (yield from self._skip(self.quote)):
                break
            if self._at == len(self._text):
                if self._is_whole:
                    raise NotACall
                yield
        self._put(index, '"')

    def _bare(self, ends: str) -> Waiting[str]:
        """Return unquoted text up to one of the characters, which is held back until then."""
        text = ""
        while (char := (yield from self._peek())) not in ends:
            if len(text) == _MAX_BARE_CHARS or (yield from self._next_is(self.closing)):
                raise NotACall
            text += char
            self._hold(self._take(1))
        if not char:
            raise NotACall
        self._held = []
        return text


class Gemma4Parser(FunctionGemmaParser):
    """Reads calls as the base class does, with Gemma 4's tokens."""

    opening: ClassVar[str] = "<|tool_call>"
    closing: ClassVar[str] = "<tool_call|>"
    quote: ClassVar[str] = '<|"|>'
    markers = (opening, closing, quote)
