"""DRY ("don't repeat yourself"): a token that would continue a repetition gets less likely with the
repetition's length.

The text's last tokens may have occurred earlier in it. Whatever followed them there would lengthen
the repetition and is penalised by `multiplier * base ** (length - allowed_length)`. A repetition
never reaches across a sequence breaker. Names and meaning are llama.cpp's; the sampler was invented
by p-e-w (text-generation-webui, pull request 5677).
"""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import Patterns, SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from kernels import EditLists

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

_LARGEST_LOG = 88.0
"""The largest logarithm of a power: above e**88 it does not fit fp32, and no penalty needs to be
greater."""
MAX_PLACES = 4096
"""The most earlier places of the last token that are looked at, the latest ones, to bound the time
of a step."""
_FEW = 8
_NO_IDS = np.empty(0, dtype=np.int64)
_NO_PENALTIES = np.empty(0)


class Dry:
    """The DRY processor (`engine.llm.sampling.logits_processors.LogitsProcessor`)."""

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._texts: dict[int, _RepeatingText] = {}

    def add(self, sequence: NewSequence) -> bool:
        params = sequence.sampling
        if params.dry_multiplier == 0.0 or params.dry_penalty_last_n == 0:
            return False
        self._texts[sequence.seq_id] = _RepeatingText(params, sequence.prompt_token_ids)
        return True

    def remove(self, seq_id: int) -> None:
        self._texts.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        text = self._texts[row.seq_id]
        text.rewind(row.position)
        ids, penalties = text.penalties()
        if not len(ids):
            return
        known = ids < self._vocab_size
        if known.any():
            edits.add(place, ids[known], -penalties[known])

    def advance(self, row: SampleRow, token_id: int) -> None:
        text = self._texts[row.seq_id]
        if not text.has(row.position, token_id):
            text.rewind(row.position)
            text.append(token_id)


class _RepeatingText:
    """A sequence's tokens, and the earlier places where their end occurs.

        tokens   a b c c b c y a b c
        lengths      3 1   2            how far back the text that ends here equals the text's end
                         ↑ the next token being c would make it 4

    `append` scans the window once for its token and handles at most `MAX_PLACES` places. Everything
    is compared anew only at first and when tokens are taken back, in time proportional to the
    window. Completions of one prompt share the first comparison.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._breakers = _breakers_of(params.dry_sequence_breakers)
        self._num_prompt = self._size = len(prompt)
        self._tokens = np.empty(max(64, 2 * len(prompt)), dtype=np.int32)
        self._tokens[: len(prompt)] = prompt
        # Entry i + 1 belongs to place i; the first entry stays 0.
        self._lengths = np.zeros(len(self._tokens) + 1, dtype=np.int32)
        self._places = np.empty(0, dtype=np.int64)
        self._longest = 0
        """An upper bound of the lengths at these places."""
        self._start = 0
        """The place behind the last breaker."""
        self._compare_all()

    def has(self, position: int, token_id: int) -> bool:
        """Whether `token_id` is the generated token at `position`."""
        place = self._num_prompt + position
        return place < self._size and int(self._tokens[place]) == token_id

    def append(self, token_id: int) -> None:
        if self._size == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.empty_like(self._tokens)))
            grown = np.zeros(len(self._tokens) + 1, dtype=np.int32)
            grown[: len(self._lengths)] = self._lengths
            self._lengths = grown
        self._tokens[self._size] = token_id
        self._size += 1
        begin = self._begin()
        same = np.flatnonzero(self._tokens[begin : self._size - 1] == token_id)
        places = begin + same[-MAX_PLACES:]
        lengths = self._lengths[places] + 1
        if len(self._places):
            self._lengths[self._places + 1] = 0
        self._longest = 0
        if len(places):
            self._lengths[places + 1] = lengths
            self._longest = int(lengths.max())
        self._places = places
        if self._breakers.end_at(self._tokens, self._size - 1):
            self._start = self._size

    def rewind(self, num_outputs: int) -> None:
        """Go back to the first `num_outputs` generated tokens, if there are more."""
        size = self._num_prompt + num_outputs
        if size > self._size:
            raise InvariantViolation(
                f"sampling at position {num_outputs}, but only {self._size - self._num_prompt} "
                f"tokens of the sequence are known"
            )
        if size < self._size:
            self._size = size
            self._compare_all()

    def penalties(self) -> tuple[Int64Array, NDArray[np.float64]]:
        """Return the distinct token ids that would continue a repetition, and their penalties."""
        params, begin = self._params, self._begin()
        longest = self._size - max(begin, self._start)
        if min(self._longest, longest) < params.dry_allowed_length:  # the case in most steps
            return _NO_IDS, _NO_PENALTIES
        lengths = self._lengths[self._places + 1]
        lengths = np.minimum(lengths, np.minimum(self._places - begin + 1, longest))
        is_long = lengths >= params.dry_allowed_length
        if not is_long.any():
            return _NO_IDS, _NO_PENALTIES
        following = self._tokens[self._places[is_long] + 1].astype(np.int64)
        pairs = np.sort(following << 32 | lengths[is_long])
        ids = pairs >> 32
        is_longest = np.append(ids[1:] != ids[:-1], True)
        is_longest &= ~self._breakers.are_single(ids)
        powers = (pairs[is_longest] & 0xFFFFFFFF) - params.dry_allowed_length
        if params.dry_base > 1.0:
            powers = np.minimum(powers, int(_LARGEST_LOG / math.log(params.dry_base)))
        return ids[is_longest], params.dry_multiplier * params.dry_base**powers

    def _begin(self) -> int:
        """The first place of the window."""
        last_n = self._params.dry_penalty_last_n
        return 0 if last_n < 0 else max(0, self._size - last_n)

    def _compare_all(self) -> None:
        begin = self._begin()
        self._lengths[:] = 0
        places, lengths, self._start = _compared(
            self._tokens[: self._size].tobytes(), begin, self._params.dry_sequence_breakers
        )
        self._places = begin + places
        self._lengths[self._places + 1] = lengths
        self._longest = int(lengths.max(initial=0))


@functools.lru_cache(maxsize=8)
def _compared(tokens: bytes, begin: int, patterns: Patterns) -> tuple[Int64Array, Int32Array, int]:
    """Return places and lengths of repeats in the window from `begin` on, and the end of the last
    breaker."""
    text = np.frombuffer(tokens, dtype=np.int32)
    places, lengths = _repeats(text[begin:])
    start = _breakers_of(patterns).last_end(text)
    return places[-MAX_PLACES:], lengths[-MAX_PLACES:], start


def _repeats(tokens: Int32Array) -> tuple[Int64Array, Int32Array]:
    """Return the earlier places of the last token, ascending, and for each how far back the text
    that ends there equals the text's end.

    In most texts, comparing a few tokens at all places leaves few of them. Otherwise the
    Z-algorithm, run from the end to the start, is linear for any text.
    """
    places = np.flatnonzero(tokens[:-1] == tokens[-1:])
    lengths = np.ones(len(places), dtype=np.int32)
    longer = np.arange(len(places))
    for length in range(1, _FEW):
        longer = longer[places[longer] >= length]
        if len(longer):
            longer = longer[tokens[places[longer] - length] == tokens[-1 - length]]
        if not len(longer):
            return places, lengths
        lengths[longer] += 1
    return places, _lengths_by_z(tokens, places)


def _lengths_by_z(tokens: Int32Array, places: Int64Array) -> Int32Array:
    size = len(tokens)
    text: list[int] = tokens[::-1].tolist()
    found = [0] * size
    left = right = 0
    for place in (size - 1 - places[::-1]).tolist():
        length = min(found[place - left], right - place) if place < right else 0
        if place + length >= right:
            while place + length < size and text[length] == text[place + length]:
                length += 1
            left, right = place, place + length
        found[place] = length
    return np.array(found, dtype=np.int32)[size - 1 - places]


class _Breakers:
    """Patterns in a tree of their tails, read backwards, so that many patterns cost a token no more
    than one."""

    def __init__(self, patterns: Patterns) -> None:
        self._root = _Node()
        for pattern in patterns:
            node = self._root
            for token_id in reversed(pattern.tail):
                node = node.before.setdefault(token_id, _Node())
            heads = np.frombuffer(pattern.heads, dtype="<i4")
            node.heads = np.union1d(node.heads, heads).astype(np.int32)
            node.known = frozenset(node.heads.tolist())

    def end_at(self, tokens: Int32Array, place: int) -> bool:
        """Whether a breaker ends at a place."""
        node: _Node | None = self._root
        while node is not None and place >= 0:
            token_id = int(tokens[place])
            if token_id in node.known:
                return True
            node = node.before.get(token_id)
            place -= 1
        return False

    def last_end(self, tokens: Int32Array) -> int:
        """The place behind the last breaker of a text; 0 without one."""
        return self._last_end(self._root, tokens, np.arange(len(tokens)), 0)

    def _last_end(self, node: "_Node", tokens: Int32Array, places: Int64Array, depth: int) -> int:
        """Find the last end among breakers whose last `depth` tokens lead to this node; `places`
        are those before these tokens."""
        at = tokens[places]
        heads = places[np.isin(at, node.heads)] if len(node.heads) else places[:0]
        last = int(heads[-1]) + depth + 1 if len(heads) else 0
        for token_id, before in node.before.items():
            some = places[at == token_id] - 1
            some = some[(some >= 0) & (some + depth + 2 > last)]
            if len(some):
                last = max(last, self._last_end(before, tokens, some, depth + 1))
        return last

    def are_single(self, ids: Int64Array) -> NDArray[np.bool_]:
        """Tell which tokens are breakers by themselves; those are never penalised."""
        heads = self._root.heads
        if not len(heads):
            return np.zeros(len(ids), dtype=np.bool_)
        nearest = heads[np.minimum(heads.searchsorted(ids), len(heads) - 1)]
        return np.asarray(nearest == ids)


@functools.lru_cache(maxsize=32)
def _breakers_of(patterns: Patterns) -> _Breakers:
    """Share breakers between requests: most have the same ones, and all completions of a request
    do."""
    return _Breakers(patterns)


class _Node:
    __slots__ = ("before", "heads", "known")

    def __init__(self) -> None:
        self.before: dict[int, _Node] = {}
        self.heads: Int32Array = np.empty(0, dtype=np.int32)
        """Tokens that complete a pattern here, ascending."""
        self.known: frozenset[int] = frozenset()
        """The same tokens as `heads`, as a set."""
