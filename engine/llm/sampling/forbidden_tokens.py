"""Processors that forbid what a request does not want: tokens, and words of several tokens."""

import functools
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from kernels import EditLists

Int64Array = NDArray[np.int64]
Words = tuple[tuple[int, ...], ...]


class ForbiddenTokens:
    """Forbids all tokens but `allowed_token_ids`, bad words that are a single token, and the tokens
    that the model must never draw."""

    needs_host_tokens: ClassVar[bool] = False

    def __init__(self, vocab_size: int, never: tuple[int, ...] = ()) -> None:
        self._vocab_size = vocab_size
        self._never = never
        self._masks: dict[int, Int64Array] = {}
        self._ids: dict[int, Int64Array] = {}

    def add(self, sequence: NewSequence) -> bool:
        sampling = sequence.sampling
        banned = {*self._never, *(word[0] for word in sampling.bad_words if len(word) == 1)}
        ids = np.array([one for one in banned if 0 <= one < self._vocab_size], dtype=np.int64)
        if len(ids):
            self._ids[sequence.seq_id] = ids
        if sampling.allowed_token_ids is not None:
            self._masks[sequence.seq_id] = _mask(sampling.allowed_token_ids, self._vocab_size)
        return bool(len(ids)) or sampling.allowed_token_ids is not None

    def remove(self, seq_id: int) -> None:
        self._masks.pop(seq_id, None)
        self._ids.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        if (ids := self._ids.get(row.seq_id)) is not None:
            edits.forbid(place, ids)
        if (mask := self._masks.get(row.seq_id)) is not None:
            edits.allow(place, mask)

    def advance(self, row: SampleRow, token_id: int) -> None:
        """Do nothing: the forbidden tokens are the same at every position."""


class BadWords:
    """Forbids the last token of a bad word where the text ends with the word's other tokens.

    As in vLLM, only generated tokens count: no word begins in the prompt.
    """

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: dict[int, dict[int, Words]] = {}
        self._outputs: dict[int, list[int]] = {}

    def add(self, sequence: NewSequence) -> bool:
        words = _long_words(sequence.sampling.bad_words, self._vocab_size)
        if not words:
            return False
        self._words[sequence.seq_id] = words
        self._outputs[sequence.seq_id] = []
        return True

    def remove(self, seq_id: int) -> None:
        self._words.pop(seq_id, None)
        self._outputs.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        outputs = self._outputs_before(row)
        if not outputs:
            return
        words = self._words[row.seq_id].get(outputs[-1], ())
        last_ids = {word[-1] for word in words if tuple(outputs[1 - len(word) :]) == word[:-1]}
        if last_ids:
            edits.forbid(place, np.array(list(last_ids), dtype=np.int64))

    def advance(self, row: SampleRow, token_id: int) -> None:
        outputs = self._outputs[row.seq_id]
        if row.position >= len(outputs) or outputs[row.position] != token_id:
            self._outputs_before(row).append(token_id)

    def _outputs_before(self, row: SampleRow) -> list[int]:
        """The sequence's generated tokens before the row; later ones are forgotten."""
        outputs = self._outputs[row.seq_id]
        if row.position > len(outputs):
            raise InvariantViolation(
                f"sampling at position {row.position}, but only {len(outputs)} tokens of the "
                "sequence are known"
            )
        del outputs[row.position :]
        return outputs


@functools.lru_cache(maxsize=32)
def _mask(token_ids: bytes, vocab_size: int) -> Int64Array:
    """Make a mask of `LogitEdits.masks`, which the completions of a request share."""
    ids = np.frombuffer(token_ids, dtype="<i4")
    bits = np.zeros(-(-vocab_size // 64) * 64, dtype=np.bool_)
    bits[ids[(ids >= 0) & (ids < vocab_size)]] = True
    return np.packbits(bits, bitorder="little").view(np.int64)


@functools.lru_cache(maxsize=32)
def _long_words(words: Words, vocab_size: int) -> dict[int, Words]:
    """Group words of several tokens by their last token but one."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for word in words:
        if len(word) > 1 and 0 <= word[-1] < vocab_size:
            found.setdefault(word[-2], []).append(word)
    return {token_id: tuple(some) for token_id, some in found.items()}
