"""Prompts with parts that are states instead of tokens, such as pictures.

A prompt is one list of token ids. Where an encoder's states enter the model instead of looked-up
embeddings, the list repeats the model's placeholder token, and a `StatePart` says what is there.
Lengths, bounds, usage and blocks thus count both kinds of rows alike.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256


@dataclass(frozen=True, kw_only=True)
class StatePart:
    """A stretch of a prompt whose rows are states that the model's encoder makes."""

    start: int
    """The number of prompt rows before it."""
    length: int
    """The number of its rows, all of them placeholders among the prompt's token ids."""
    content: bytes = field(repr=False)
    """What the encoder reads; of a picture, the pixels of one crop: 8-bit RGB [S, S, 3], where S is
    `PictureFacts.side`."""

    @property
    def end(self) -> int:
        """The number of prompt rows up to its last one."""
        return self.start + self.length

    @cached_property
    def digest(self) -> bytes:
        """The content's hash: parts with equal digests have equal states."""
        return sha256(self.content).digest()
