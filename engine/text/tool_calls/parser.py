"""The common parts of the parsers of calls.

A call is announced once its name is known and its arguments begin; from then on arguments are
passed on as they come. Text that looked like a call before that and is none is plain text. After
that, a call remains one: if its arguments are not valid JSON, or the text ends within them, they
are passed on as the model wrote them.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.text.answer_pieces import Arguments, CallStart, Content
from engine.text.answer_reader import AnswerReader, Waiting, length_of_beginning
from engine.text.tool_calls.json_scanner import JsonScanner

MAX_NAME_CHARS = 256

Schemas = Mapping[str, Mapping[str, Any]]
"""The functions that may be called: the JSON schema of their parameters by name."""


class NotACall(Exception):
    """Raised when the text is not a call; it is still held."""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """The notation of a call that the model is made to write: the text around the JSON of its
    arguments.

    Attributes:
        begin: the text before the arguments; `{name}` stands for the function's name.
        trigger: the beginning of `begin` that free text does not have.
        separator: the text between two calls.
    """

    begin: str
    end: str
    trigger: str
    separator: str = ""


class ToolCallParser(AnswerReader):
    """Separates plain text and calls in the text of an answer.

    White space around calls is left out.

    Args:
        must_call: whether the text must hold a call. If so, an unfinished beginning of a call, or
            of its end, at the end of the text was cut off; it is left out because it is not text
            for a reader.

    Attributes:
        markers: texts that may be special tokens and must not be left out of the text.
        syntax: the notation, or None where arguments are not JSON.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    syntax: ClassVar[CallSyntax | None] = None

    def __init__(self, schemas: Schemas, *, must_call: bool = False) -> None:
        super().__init__()
        self._schemas = schemas
        self._must_call = must_call
        self._num_calls = 0
        self._has_content = False
        self._space = ""
        self._held: list[str] = []

    @abstractmethod
    def _calls(self) -> Waiting[None]:
        """Read the whole text."""

    def _read(self) -> Waiting[None]:
        yield from self._calls()
        while (yield from self._plain_text()):
            pass
        if not self._num_calls:
            self._said.append(Content(self._space))

    def _plain_text(self, *markers: str) -> Waiting[str]:
        """Pass text on up to the first of the markers, which is then held. Return it, or "" at the
        end of the text."""
        while True:
            text = self._part_before(*markers)
            if self._is_cut_off:
                text = text[: len(text) - length_of_beginning(text, 0, (*markers, *self.markers))]
            self._say(text)
            marker = (yield from self._skip(*markers)) if markers else ""
            if marker:
                self._held = [marker]
                return marker
            if self._at == len(self._text):
                if self._is_whole:
                    return ""
                yield

    def _say(self, text: str) -> None:
        text = self._space + text
        if self._num_calls and not self._has_content:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._has_content = True
            self._said.append(Content(shown))

    def _say_held(self) -> None:
        """Pass the held text on, since it is plain text after all."""
        if not self._is_cut_off:
            self._say("".join(self._held))
        self._held = []

    @property
    def _is_cut_off(self) -> bool:
        """Whether the last thing that was read was cut off."""
        return self._must_call and self._is_whole and self._at == len(self._text)

    def _hold(self, text: str) -> None:
        self._held.append(text)

    def _skip_held(self, *markers: str) -> Waiting[str]:
        marker = yield from self._skip(*markers)
        self._hold(marker)
        return marker

    def _skip_space(self) -> Waiting[None]:
        while (yield from self._peek()).isspace():
            self._hold(self._take(1))

    def _pass_space(self) -> Waiting[None]:
        while (yield from self._peek()).isspace():
            self._take(1)

    def _put(self, index: int, text: str) -> None:
        """Pass on more of a call's arguments."""
        self._said.append(Arguments(index, text))

    def _announce(self, name: str) -> int:
        """Begin a call and return its number; the held text belongs to it."""
        self._held = []
        self._space = ""
        self._num_calls += 1
        self._said.append(CallStart(self._num_calls - 1, name))
        return self._num_calls - 1

    def _json_value(self, found: Callable[[str], None]) -> Waiting[bool]:
        """Pass a JSON value on as it comes. Return False if it stops being valid."""
        scanner = JsonScanner()
        while True:
            end = scanner.read(self._text, self._at)
            found(self._take(end - self._at))
            if scanner.is_done:
                return True
            if scanner.is_bad or self._is_whole:
                return not scanner.is_bad and scanner.finish()
            yield

    def _json_string(self) -> Waiting[str]:
        """Read a JSON string and return its value.

        Raises:
            NotACall: there is no string.
        """
        if (yield from self._peek()) != '"':
            raise NotACall
        value: str = json.loads((yield from self._json_text()))
        return value

    def _json_text(self) -> Waiting[str]:
        """Read a JSON value and return its text.

        Raises:
            NotACall: there is no value.
        """
        parts: list[str] = []

        def keep(text: str) -> None:
            parts.append(text)
            self._hold(text)

        if not (yield from self._json_value(keep)):
            raise NotACall
        return "".join(parts)

    def _json_arguments(self, name: str, *ends: str) -> Waiting[None]:
        """Announce a call and pass its arguments on.

        Args:
            ends: markers before which arguments that are not valid JSON end.

        Raises:
            NotACall: the text cannot be arguments.
        """
        match (yield from self._peek()):
            case "{":
                index = self._announce(name)
                is_json = yield from self._json_value(lambda text: self._put(index, text))
                if not is_json:
                    yield from self._rest_of_arguments(index, *ends)
            case '"':  # JSON within JSON
                text = yield from self._json_string()
                self._put(self._announce(name), text)
            case _:
                yield from self._no_arguments(name)

    def _no_arguments(self, name: str) -> Waiting[None]:
        if not (yield from self._skip_held("null")):
            raise NotACall
        self._put(self._announce(name), "{}")

    def _rest_of_arguments(self, index: int, *ends: str) -> Waiting[None]:
        """Pass arguments on as the model wrote them, up to one of the ends or the end of the
        text."""
        while True:
            self._put(index, self._part_before(*ends))
            if ends and (yield from self._next_is(*ends)):
                return
            if self._at == len(self._text):
                if self._is_whole:
                    return
                yield
