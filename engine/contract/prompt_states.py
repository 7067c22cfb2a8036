"""Prompts with parts that are states instead of tokens, such as pictures.

A prompt is one list of token ids. Where an encoder's states enter the model instead of looked-up
embeddings, the list repeats the model's placeholder token, and a `StatePart` says what is there.
Lengths, bounds, usage and blocks thus count both kinds of rows alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import isqrt
from typing import NamedTuple


class Stretch(NamedTuple):
    """Neighbouring rows of a prompt that are all states of one part."""

    first_row: int
    """The number of prompt rows before them."""
    first_state: int
    """The number of the part's states before them."""
    num_rows: int


class ReducedShape(tuple[int, int]):
    """The lines and columns of states that are averages of more states.

    Attributes:
        kept: the numbers of lines and columns of states before they are reduced.
    """

    kept: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class StatePart:
    """A stretch of a prompt whose rows are states that the model's encoder makes, except for tokens
    between the lines of a picture."""

    start: int
    """The number of prompt rows before it."""
    length: int
    """The number of its rows. States are placeholders among the prompt's token ids."""
    content: bytes = field(repr=False)
    """What the encoder reads; of a picture, the pixels of one crop: 8-bit RGB [H, W, 3]."""
    columns: int | None = None
    """The number of states that lie side by side, in a picture of any size; None for a square
    crop."""
    width: int | None = None
    """The width in pixels of what is shown; None for a square."""
    kept: tuple[int, int] | None = None
    """The numbers of lines and columns of states that are reduced; None if none are."""
    has_axes: bool = False
    """Whether the positions of its rows have a height and a width."""
    parts_lines: bool = False
    """Whether a token stands between two lines of states."""

    @property
    def end(self) -> int:
        """The number of prompt rows up to its last one."""
        return self.start + self.length

    @property
    def num_states(self) -> int:
        """The number of its rows that are states."""
        if not self.parts_lines or self.columns is None or self.columns < 1:
            return self.length
        return (self.length + 1) // (self.columns + 1) * self.columns

    def stretches(self, start: int, end: int) -> Iterator[Stretch]:
        """The states among the rows `start .. end` of the prompt."""
        line = self.columns if self.parts_lines and self.columns else self.length
        first_line = max(start - self.start, 0) // (line + 1)
        for number, place in enumerate(
            range(self.start + first_line * (line + 1), min(self.end, end), line + 1), first_line
        ):
            first, last = max(place, start), min(place + line, self.end, end)
            if first < last:
                yield Stretch(first, number * line + first - place, last - first)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the content in pixels."""
        num_pixels = len(self.content) // 3
        width = self.width or isqrt(num_pixels)
        return num_pixels // width, width

    @property
    def shape(self) -> tuple[int, int] | None:
        """The numbers of lines and columns of its states; None for a square crop."""
        if self.columns is None:
            return None
        shape = self.num_states // max(1, self.columns), self.columns
        if self.kept is None:
            return shape
        reduced = ReducedShape(shape)
        reduced.kept = self.kept
        return reduced

    @property
    def num_positions(self) -> int:
        """The number of positions that it takes: one for each row, or as many as rows lie along the
        longer side of a picture whose positions have axes."""
        if not self.has_axes or self.columns is None:
            return self.length
        return max(self.columns, self.length // self.columns)

    @cached_property
    def digest(self) -> bytes:
        """The hash of the content and its shape: parts with equal digests have equal states."""
        found = sha256(self.content)
        found.update(repr((self.columns, self.width, self.kept)).encode())
        return found.digest()
