"""Reads a text that arrives in parts with code that looks as if the whole text were there.

A reader's `_read` is a generator. Its primitives wait for more text with `yield`; it adds its
results to `self._said`. The results never depend on how the text was cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TypeVar

from engine.text.answer_pieces import Piece, joined

T = TypeVar("T")
Waiting = Generator[None, None, T]
"""A generator that continues when there is more text and finally returns a T."""

_PART_CHARS = 4096
"""Texts longer than this are read in parts, since each search for a marker goes over the rest of a
part."""


class AnswerReader(ABC):
    """A reader that turns the text of one answer into pieces as soon as they are certain."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._num_past = 0
        """Characters before those of `_text`."""
        self._is_whole = False
        self._said: list[Piece] = []
        self._reading = self._read()

    def add(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are now certain."""
        pieces: list[Piece] = []
        for start in range(0, len(text), _PART_CHARS):
            self._num_past += self._at
            self._text = self._text[self._at :] + text[start : start + _PART_CHARS]
            self._at = 0
            pieces += self._go_on()
        return joined(pieces)

    def finish(self) -> list[Piece]:
        """End the text and return the pieces that were held back."""
        self._is_whole = True
        return self._go_on()

    @abstractmethod
    def _read(self) -> Waiting[None]:
        """Read the whole text."""

    def _go_on(self) -> list[Piece]:
        next(self._reading, None)
        said, self._said = self._said, []
        return joined(said)

    @property
    def _num_read(self) -> int:
        """Number of characters that have been read."""
        return self._num_past + self._at

    def _take(self, num_chars: int) -> str:
        """Return the next characters, which must have arrived."""
        text = self._text[self._at : self._at + num_chars]
        self._at += num_chars
        return text

    def _peek(self) -> Waiting[str]:
        """Return the next character, or "" at the end of the text."""
        while self._at == len(self._text) and not self._is_whole:
            yield
        return self._text[self._at : self._at + 1]

    def _next_is(self, *markers: str) -> Waiting[str]:
        """Return the marker at this place, the longest of several, or "" if there is none."""
        ordered = sorted(markers, key=len, reverse=True)
        while True:
            ahead = self._text[self._at : self._at + len(ordered[0])]
            found = next((m for m in ordered if ahead.startswith(m)), "")
            longer = [m for m in ordered if len(m) > max(len(found), len(ahead))]
            if self._is_whole or not any(m.startswith(ahead) for m in longer):
                return found
            yield

    def _skip(self, *markers: str) -> Waiting[str]:
        """Return the marker at this place as `_next_is` does, and move past it."""
        marker = yield from self._next_is(*markers)
        self._take(len(marker))
        return marker

    def _part_before(self, *markers: str) -> str:
        """Take the text before the first of the markers as far as it has arrived, without an end
        that may be the beginning of a marker."""
        places = [place for m in markers if (place := self._text.find(m, self._at)) >= 0]
        end = min(places, default=len(self._text))
        if not places and not self._is_whole:
            end -= length_of_beginning(self._text, self._at, markers)
        return self._take(end - self._at)


def length_of_beginning(text: str, start: int, markers: Sequence[str]) -> int:
    """Return the length of the longest end of the text, from `start` on, that begins a marker."""
    longest = max(map(len, markers), default=1) - 1
    for length in range(min(len(text) - start, longest), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
