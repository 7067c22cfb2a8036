"""Mistral: an array after a special token; in newer models each call has its own.

[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1b2c3d4e"}]
[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris"}
[TOOL_CALLS]get_weather{"city": "Paris"}
"""

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.call_object import CallObjectParser
from engine.text.tool_calls.parser import MAX_NAME_CHARS, CallSyntax, NotACall

_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_MAX_ID_CHARS = 64


class MistralParser(CallObjectParser):
    """Reads any of these notations after the token. The models' ids are left out."""

    markers = (_CALLS, _ID, _ARGUMENTS)
    syntax = CallSyntax(
        begin='[TOOL_CALLS][{{"name": "{name}", "arguments": ', end="}]", trigger=_CALLS
    )

    def _calls(self) -> Waiting[None]:
        self._known_only = False
        while (yield from self._plain_text(_CALLS)):
            try:
                yield from self._skip_space()
                if (yield from self._peek()) in ("[", "{"):
                    yield from self._call_objects(_CALLS)
                else:
                    yield from self._named_call()
            except NotACall:
                pass
            self._say_held()

    def _named_call(self) -> Waiting[None]:
        name = (yield from self._word(MAX_NAME_CHARS)).strip()
        if not name:
            raise NotACall
        if (yield from self._skip_held(_ID)):
            yield from self._word(_MAX_ID_CHARS)
        yield from self._skip_held(_ARGUMENTS)
        yield from self._skip_space()
        if (yield from self._peek()) != "{":
            raise NotACall
        yield from self._json_arguments(name, _CALLS)

    def _word(self, max_chars: int) -> Waiting[str]:
        word = ""
        while (char := (yield from self._peek())) not in ("", "[", "{", "\n"):
            if len(word) == max_chars:
                raise NotACall
            word += char
            self._hold(self._take(1))
        return word
