"""Prompts with parts that are states instead of tokens, such as pictures.

A prompt is one list of token ids. Where an encoder's states enter the model instead of looked-up
embeddings, the list repeats the model's placeholder token, and a `StatePart` says what is there.
Lengths, bounds, usage and blocks thus count both kinds of rows alike.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import isqrt


@dataclass(frozen=True, kw_only=True)
class StatePart:
    """A stretch of a prompt whose rows are states that the model's encoder makes."""

    start: int
    """The number of prompt rows before it."""
    length: int
    """The number of its rows, all of them placeholders among the prompt's token ids."""
    content: bytes = field(repr=False)
    """What the encoder reads; of a picture, the pixels of one crop: 8-bit RGB [H, W, 3]."""
    columns: int | None = None
    """The number of rows that lie side by side, in a picture whose rows are squares; None for a
    square crop."""

    @property
    def end(self) -> int:
        """The number of prompt rows up to its last one."""
        return self.start + self.length

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the content in pixels."""
        num_pixels = len(self.content) // 3
        if self.columns is None:
            return isqrt(num_pixels), isqrt(num_pixels)
        side = isqrt(num_pixels // self.length)
        return self.length // self.columns * side, self.columns * side

    @property
    def num_positions(self) -> int:
        """The number of positions that it takes: one for each row, or as many as rows lie along the
        longer side of a picture whose rows are squares."""
        if self.columns is None:
            return self.length
        return max(self.columns, self.length // self.columns)

    @cached_property
    def digest(self) -> bytes:
        """The hash of the content and its shape: parts with equal digests have equal states."""
        found = sha256(self.content)
        found.update(repr(self.columns).encode())
        return found.digest()
