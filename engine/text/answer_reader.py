"""Reads a text that arrives in parts with code that looks as if it were all there.

A reader's `_read` is a generator. It waits for more text with `yield`, which its primitives do;
what it has to say it adds to `self._said`. What it says never depends on how the text was cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TypeVar

from engine.text.answer_pieces import Piece, joined

T = TypeVar("T")
Waiting = Generator[None, None, T]
"""What reads on when there is more text, and then gives a T."""

_PART_CHARS = 4096
"""Longer texts are read in parts: markers are looked for in what is left of a part, again and
again."""


class AnswerReader(ABC):
    """From the text of one answer to its pieces, as soon as they are certain."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._num_past = 0
        """Characters before those of `_text`."""
        self._is_whole = False
        self._said: list[Piece] = []
        self._reading = self._read()

    def add(self, text: str) -> list[Piece]:
        """More text. Returns what it makes certain."""
        pieces: list[Piece] = []
        for start in range(0, len(text), _PART_CHARS):
            self._num_past += self._at
            self._text = self._text[self._at :] + text[start : start + _PART_CHARS]
            self._at = 0
            pieces += self._go_on()
        return joined(pieces)

    def finish(self) -> list[Piece]:
        """The text has ended. Returns what was held back."""
        self._is_whole = True
        return self._go_on()

    @abstractmethod
    def _read(self) -> Waiting[None]:
        """Read everything."""

    def _go_on(self) -> list[Piece]:
        next(self._reading, None)
        said, self._said = self._said, []
        return joined(said)

    @property
    def _num_read(self) -> int:
        """Characters of the text that are behind."""
        return self._num_past + self._at

    def _take(self, num_chars: int) -> str:
        """The next characters, which have come."""
        text = self._text[self._at : self._at + num_chars]
        self._at += num_chars
        return text

    def _peek(self) -> Waiting[str]:
        """The next character; none where the text ends."""
        while self._at == len(self._text) and not self._is_whole:
            yield
        return self._text[self._at : self._at + 1]

    def _next_is(self, *markers: str) -> Waiting[str]:
        """Which of the markers stands here, the longest of several; "" for none."""
        ordered = sorted(markers, key=len, reverse=True)
        while True:
            ahead = self._text[self._at : self._at + len(ordered[0])]
            found = next((m for m in ordered if ahead.startswith(m)), "")
            longer = [m for m in ordered if len(m) > max(len(found), len(ahead))]
            if self._is_whole or not any(m.startswith(ahead) for m in longer):
                return found
            yield

    def _skip(self, *markers: str) -> Waiting[str]:
        """The same, and go past it."""
        marker = yield from self._next_is(*markers)
        self._take(len(marker))
        return marker

    def _part_before(self, *markers: str) -> str:
        """What has come of the text before the first of the markers, taken; without the end of it
        that may be the beginning of one."""
        places = [place for m in markers if (place := self._text.find(m, self._at)) >= 0]
        end = min(places, default=len(self._text))
        if not places and not self._is_whole:
            end -= length_of_beginning(self._text, self._at, markers)
        return self._take(end - self._at)


def length_of_beginning(text: str, start: int, markers: Sequence[str]) -> int:
    """How long the longest end of the text, from `start` on, is that begins a marker."""
    longest = max(map(len, markers), default=1) - 1
    for length in range(min(len(text) - start, longest), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
