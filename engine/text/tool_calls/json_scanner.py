"""Finds the end of a JSON value in a text that arrives in parts."""

import re

_SPACE = re.compile(r"[ \t\r\n]+")
_SCALAR_PART = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
_MAX_SCALAR_CHARS = 1024
MAX_DEPTH = 128
"""The most levels of nesting: more than any function's arguments, and fewer than JSON libraries
allow."""


class JsonScanner:
    """Reads one value by the grammar of RFC 8259, part by part, in linear time.

    Attributes:
        is_done: whether the value has ended. A number ends with the character after it.
        is_bad: whether the text is not JSON from the place where `read` stopped.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_bad = False
        self._closers: list[str] = []
        self._expected = "value"  # or: first key, key, colon, comma, first item
        self._in_string = False
        self._escape = 0  # -1: its letter comes next; otherwise the number of hex digits left
        self._scalar = ""

    def read(self, text: str, start: int) -> int:
        """Continue at `start` and return the place right after the text that was read."""
        at = start
        while at < len(text) and not (self.is_done or self.is_bad):
            if self._in_string:
                at = self._string(text, at)
            elif (space := _SPACE.match(text, at)) and not self._scalar:
                at = space.end()
            else:
                at = self._token(text, at)
        return at

    def finish(self) -> bool:
        """End the text; return whether it was a whole value."""
        self._end_scalar()
        return self.is_done

    def _string(self, text: str, at: int) -> int:
        char = text[at]
        if self._escape:
            good = char in (_ESCAPES if self._escape < 0 else _HEX)
            self._escape = (4 if char == "u" else 0) if self._escape < 0 else self._escape - 1
            return at + 1 if good else self._fail(at)
        if char == "\\":
            self._escape = -1
        elif char == '"':
            self._in_string = False
            self._expected = "colon" if "key" in self._expected else self._after_value()
        elif (plain := _PLAIN.match(text, at)) is None:
            return self._fail(at)
        else:
            return plain.end()
        return at + 1

    def _token(self, text: str, at: int) -> int:
        char = text[at]
        if self._may_close() and char == self._closers[-1]:
            self._closers.pop()
            self._expected = self._after_value()
            return at + 1
        if self._expected in ("value", "first item") or self._scalar:
            return self._value(text, at, char)
        if char == '"' and "key" in self._expected:
            self._in_string = True
        elif char == ":" and self._expected == "colon":
            self._expected = "value"
        elif char == "," and self._expected == "comma":
            self._expected = "key" if self._closers[-1] == "}" else "value"
        else:
            return self._fail(at)
        return at + 1

    def _value(self, text: str, at: int, char: str) -> int:
        if (part := _SCALAR_PART.match(text, at)) is not None:
            self._scalar += part[0]
            return part.end() if len(self._scalar) <= _MAX_SCALAR_CHARS else self._fail(at)
        if self._scalar:
            self._end_scalar()
            return at
        if char == '"':
            self._in_string = True
        elif char in "{[" and len(self._closers) < MAX_DEPTH:
            self._closers.append("}" if char == "{" else "]")
            self._expected = "first key" if char == "{" else "first item"
        else:
            return self._fail(at)
        return at + 1

    def _end_scalar(self) -> None:
        if not self._scalar:
            return
        if _SCALAR.fullmatch(self._scalar):
            self._scalar = ""
            self._expected = self._after_value()
        else:
            self.is_bad = True

    def _may_close(self) -> bool:
        return not self._scalar and self._expected in ("comma", "first key", "first item")

    def _after_value(self) -> str:
        self.is_done = not self._closers
        return "comma"

    def _fail(self, at: int) -> int:
        self.is_bad = True
        return at
