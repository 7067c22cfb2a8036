"""Divides a prompt into chunks that fit a text encoder.

A chunk is the text between the encoder's begin and end tokens. Where a long prompt is divided
depends on its syntax:

    plain, compel   after `capacity` tokens, so that the first chunk is what a truncating pipeline
                    would have encoded
    a1111           the same, but text after a comma among the last 20 tokens moves to the next
                    chunk; also at every BREAK
    comfy           before a word that does not fit, unless it has 8 tokens or more
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.fragments import Break, Fragment
from engine.errors import InvalidParameter

MAX_CHUNKS = 64
"""The most chunks: 4800 tokens for CLIP. Each adds cross-attention keys to every step."""

COMMA_BACKTRACK = 20
"""The tokens that the a1111 syntax looks back for a comma; its web UI's default."""

LONG_WORD = 8
"""The number of tokens from which the comfy syntax may divide a word."""

Tokenize = Callable[[str], list[int]]


@dataclass(slots=True)
class Chunk:
    """At most `capacity` tokens, without begin, end and padding. All lists have equal length.

    Attributes:
        weights: the weight of each token.
        fragments: the position of each token's fragment among the prompt's pieces.
    """

    token_ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    fragments: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def append(self, token_id: int, weight: float, fragment: int) -> None:
        self.token_ids.append(token_id)
        self.weights.append(weight)
        self.fragments.append(fragment)

    def cut(self, position: int) -> "Chunk":
        """Keep the tokens before `position` and return the rest."""
        rest = Chunk(self.token_ids[position:], self.weights[position:], self.fragments[position:])
        del self.token_ids[position:], self.weights[position:], self.fragments[position:]
        return rest

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


def split_chunks(
    tokenize: Tokenize,
    pieces: Sequence[Fragment | Break],
    *,
    capacity: int,
    syntax: PromptSyntax,
) -> list[Chunk]:
    """The prompt's chunks in order, at least one; an empty prompt has one empty chunk.

    Args:
        tokenize: turns text into token ids, without begin and end.
        capacity: the tokens that fit between begin and end, at least 1.

    Raises:
        InvalidParameter: there are more than `MAX_CHUNKS`.
    """
    splitter = _Splitter(capacity, _comma(tokenize) if syntax is PromptSyntax.A1111 else None)
    for index, piece in enumerate(pieces):
        if isinstance(piece, Break):
            splitter.close()
        elif syntax is PromptSyntax.COMFY:
            for word in _words(piece.text):
                splitter.add_word(tokenize(word), piece.weight, index)
        else:
            for token_id in tokenize(piece.text):
                splitter.add(token_id, piece.weight, index)
    return splitter.finish()


class _Splitter:
    """The chunk that is being filled, and the finished ones."""

    def __init__(self, capacity: int, comma: int | None) -> None:
        self._capacity = capacity
        self._comma = comma
        self._done: list[Chunk] = []
        self._chunk = Chunk()
        self._after_comma: int | None = None
        """The position after the newest comma of this chunk."""

    def add(self, token_id: int, weight: float, fragment: int) -> None:
        is_full = len(self._chunk) == self._capacity
        if is_full and token_id != self._comma and self._is_comma_near():
            rest = self._chunk.cut(self._after_comma or 0)
            self.close()
            self._chunk = rest
        elif is_full:
            self.close()
        self._chunk.append(token_id, weight, fragment)
        if token_id == self._comma:
            self._after_comma = len(self._chunk)

    def add_word(self, token_ids: list[int], weight: float, fragment: int) -> None:
        """Add all tokens of a word to one chunk, if the word is short enough."""
        is_short = len(token_ids) < min(LONG_WORD, self._capacity + 1)
        if is_short and len(self._chunk) + len(token_ids) > self._capacity:
            self.close()
        for token_id in token_ids:
            self.add(token_id, weight, fragment)

    def close(self) -> None:
        if len(self._done) + 1 >= MAX_CHUNKS:
            raise InvalidParameter(
                f"the prompt is longer than {MAX_CHUNKS} chunks of {self._capacity} tokens; "
                "shorten it",
                param="prompt",
            )
        self._done.append(self._chunk)
        self._chunk = Chunk()
        self._after_comma = None

    def finish(self) -> list[Chunk]:
        return [*self._done, self._chunk] if len(self._chunk) or not self._done else self._done

    def _is_comma_near(self) -> bool:
        if self._after_comma is None:
            return False
        return len(self._chunk) - (self._after_comma - 1) <= COMMA_BACKTRACK


def _words(text: str) -> Iterator[str]:
    return (word for word in text.replace("\n", " ").split(" ") if word)


def _comma(tokenize: Tokenize) -> int | None:
    token_ids = tokenize(",")
    return token_ids[0] if len(token_ids) == 1 else None
