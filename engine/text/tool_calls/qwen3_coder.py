"""Qwen 3 Coder and Qwen 3.5, whose calls have a tag for each argument.

<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>
"""

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.json_text import bare_value, quoted
from engine.text.tool_calls.parser import MAX_NAME_CHARS, NotACall, ToolCallParser

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3CoderParser(ToolCallParser):
    """Reads calls anywhere in the text, with or without the outer tag. Arguments become JSON as
    they come: strings where the function's schema says so, otherwise the JSON that they are."""

    markers = (_OPENING, _CLOSING)

    def _calls(self) -> Waiting[None]:
        while opening := (yield from self._plain_text(_OPENING, _FUNCTION)):
            try:
                name = yield from self._name(opening)
            except NotACall:
                self._say_held()
                continue
            index = self._announce(name)
            yield from self._arguments(index, name)
            yield from self._pass_space()
            yield from self._skip(_CLOSING)

    def _name(self, opening: str) -> Waiting[str]:
        yield from self._skip_space()
        if opening != _FUNCTION and not (yield from self._skip_held(_FUNCTION)):
            raise NotACall
        name = yield from self._up_to_angle()
        if not name:
            raise NotACall
        return name

    def _arguments(self, index: int, name: str) -> Waiting[None]:
        self._put(index, "{")
        is_first = True
        while True:
            yield from self._pass_space()
            if (yield from self._skip(_FUNCTION_END)):
                self._put(index, "}")
                return
            try:
                if not (yield from self._skip_held(_PARAMETER)):
                    raise NotACall
                key = yield from self._up_to_angle()
            except NotACall:
                self._put(index, "".join(self._held))
                self._held = []
                yield from self._rest_of_arguments(index, _FUNCTION_END, _CLOSING)
                yield from self._skip(_FUNCTION_END)
                return
            self._held = []
            self._put(index, f"{'' if is_first else ', '}{quoted(key)}: ")
            is_first = False
            yield from self._value(index, self._is_text(name, key))

    def _value(self, index: int, is_text: bool) -> Waiting[None]:
        yield from self._skip("\n")
        held = ""
        self._put(index, '"' if is_text else "")
        while True:
            part = held + self._part_before(_PARAMETER_END, _PARAMETER, _FUNCTION_END)
            shown = part.removesuffix("\n") if is_text else ""
            held = part[len(shown) :]
            self._put(index, quoted(shown)[1:-1])
            if (yield from self._next_is(_PARAMETER_END, _PARAMETER, _FUNCTION_END)):
                break
            if self._at == len(self._text):
                if self._is_whole:
                    self._put(index, held)
                    return
                yield
        yield from self._skip(_PARAMETER_END)
        self._put(index, '"' if is_text else bare_value(held.strip("\n")))

    def _is_text(self, name: str, key: str) -> bool:
        properties = self._schemas.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        return isinstance(schema, dict) and schema.get("type") == "string"

    def _up_to_angle(self) -> Waiting[str]:
        text = ""
        while (char := (yield from self._peek())) != ">":
            if char in ("", "\n", "<") or len(text) == MAX_NAME_CHARS:
                raise NotACall
            text += char
            self._hold(self._take(1))
        self._hold(self._take(1))
        return text.strip()
