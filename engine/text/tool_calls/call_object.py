"""Calls as JSON objects, `{"name": …, "arguments": {…}}`, which most families write."""

import json

from engine.text.answer_reader import Waiting
from engine.text.tool_calls.parser import MAX_NAME_CHARS, NotACall, Schemas, ToolCallParser

_ARGUMENTS = ("arguments", "parameters")
_OTHER_KEYS = ("name", "id", "type", "index")


class CallObjectParser(ToolCallParser):
    """Reads such objects; the families define the frames around them."""

    def __init__(self, schemas: Schemas, *, must_call: bool = False) -> None:
        super().__init__(schemas, must_call=must_call)
        self._known_only = True
        """Whether an object must name an offered function to count as a call. After a marker for
        calls any name counts, because the client can tell the model that there is no such
        function."""

    def _call_objects(self, *ends: str) -> Waiting[None]:
        """Read one or more calls: objects one after the other, or in arrays.

        Raises:
            NotACall: the text is something else. Calls before it have been announced.
        """
        yield from self._skip_space()
        while True:
            in_array = yield from self._skip_held("[")
            yield from self._skip_space()
            yield from self._call_object(*ends)
            yield from self._skip_space()
            while in_array and (yield from self._skip_held(",")):
                yield from self._skip_space()
                yield from self._call_object(*ends)
                yield from self._skip_space()
            if in_array and (yield from self._skip("]")):
                self._held = []
                yield from self._skip_space()
            if (yield from self._skip_held(";", ",")):
                yield from self._skip_space()
            if not (yield from self._next_is("{", "[{")):
                return

    def _call_object(self, *ends: str) -> Waiting[None]:
        """Read one call.

        Raises:
            NotACall: the text is not a call.
        """
        name, arguments, is_announced = "", "", False
        if not (yield from self._skip_held("{")):
            raise NotACall
        yield from self._skip_space()
        while not (yield from self._skip_held("}")):
            key = yield from self._key()
            if key == "name" and not name:
                name = yield from self._name()
                if arguments:
                    arguments = _as_arguments(arguments)
                    self._put(self._announce(name), arguments)
                    is_announced = True
            elif key in _ARGUMENTS and name and not is_announced:
                yield from self._json_arguments(name, *ends)
                is_announced = True
            else:
                value = yield from self._json_text()
                arguments = value if key in _ARGUMENTS else arguments
            yield from self._skip_space()
            if not (yield from self._skip_held(",")):
                # Small models forget the last brace.
                closes = yield from self._skip_held("}")
                if not (closes or is_announced):
                    raise NotACall
                break
            yield from self._skip_space()
        if not is_announced:
            if not name:
                raise NotACall
            self._put(self._announce(name), "{}")
        self._held = []

    def _key(self) -> Waiting[str]:
        key = yield from self._json_string()
        if self._known_only and key not in (*_ARGUMENTS, *_OTHER_KEYS):
            raise NotACall  # other JSON, which need not be held any longer
        yield from self._skip_space()
        if not (yield from self._skip_held(":")):
            raise NotACall
        yield from self._skip_space()
        return key

    def _name(self) -> Waiting[str]:
        name = yield from self._json_string()
        if not 0 < len(name) <= MAX_NAME_CHARS or (self._known_only and name not in self._schemas):
            raise NotACall
        return name


def _as_arguments(value: str) -> str:
    """Return a JSON value as the text of arguments.

    Raises:
        NotACall: the value cannot be arguments.
    """
    if value.startswith('"'):
        text: str = json.loads(value)
        return text
    if value == "null":
        return "{}"
    if not value.startswith("{"):
        raise NotACall
    return value
