"""A logits processor that lets a sequence draw only what its structure allows."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from engine.contract.structure import Structure
from engine.errors import EngineError, InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from engine.llm.structure.grammars import Grammar, Grammars
from engine.llm.structure.matcher import refusal
from kernels import EditLists

MOST_FORCED = 16
"""The most forced tokens that are reported ahead."""
SECONDS_AT_FIRST = 0.5
SECONDS_PER_TOKEN = 0.005
"""The seconds that the masks of a text may take in all. Usual texts take a hundredth of them."""


@dataclass(slots=True)
class _Progress:
    """The position of a sequence's text in its grammar."""

    structure: Structure
    """The request's own structure; equal ones from other fields share the grammar."""
    grammar: Grammar
    start: LLMatcher
    """The start of the grammar that the matcher was copied from."""
    matcher: LLMatcher
    min_tokens: int
    ends: NDArray[np.int64]
    """Tokens that must not be drawn before `min_tokens` tokens."""
    tokens: list[int] = field(default_factory=list)
    num_matched: int = 0
    """The number of tokens before the first that the grammar does not allow, which is a draft."""
    left_s: float = SECONDS_AT_FIRST
    renewed: "Future[LLMatcher] | None" = None
    """A new start in place of the first one, whose lexer is used up. The text waits for it."""
    has_new_start: bool = False
    """Whether the text follows a new start."""
    waits_at: int | None = None
    """The position whose token is not drawn in this step, because the new start is not ready."""
    error: EngineError | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the text has left the grammar, so that nothing drawn here counts."""
        return self.num_matched < len(self.tokens)

    def rewind(self, position: int) -> None:
        """Go back to the first `position` tokens."""
        if position < self.num_matched:
            self.matcher.rollback(self.num_matched - position)
            self.num_matched = position
        del self.tokens[position:]

    def append(self, token_id: int) -> None:
        if not self.is_lost:
            self.num_matched += self.matcher.try_consume_tokens([token_id])
        self.tokens.append(token_id)

    def start_over(self, start: LLMatcher) -> None:
        """Follow the same text from another start."""
        tokens, self.tokens = self.tokens, []
        self.start, self.matcher, self.num_matched = start, start.deep_copy(), 0
        self.renewed, self.has_new_start = None, True
        for token_id in tokens:
            self.append(token_id)

    def wait(self, position: int) -> None:
        """Draw nothing at this position; later rows of the same step are then void."""
        if self.waits_at is None or position < self.waits_at:
            self.waits_at = position

    def fail(self, reason: str) -> None:
        """Let the request end with an error about its structure."""
        self.error = refusal(self.structure, reason)


class StructureMask:
    """The masks of all sequences with a structure.

    Where the grammar allows only one continuation, only one token may be drawn: the first of those
    into which the model's tokenizer splits it.
    """

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self, vocab_size: int, grammars: Grammars | None) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._progress: dict[int, _Progress] = {}

    def add(self, sequence: NewSequence) -> bool:
        structure = sequence.sampling.structure
        if structure is None:
            return False
        if self._grammars is None:
            raise InvariantViolation("a sequence has a structure, but there are no grammars")
        grammar = self._grammars.begin_text(structure)
        start = grammar.start
        ends = np.array(sequence.suppressed_token_ids, dtype=np.int64)
        self._progress[sequence.seq_id] = _Progress(
            structure=structure,
            grammar=grammar,
            start=start,
            matcher=start.deep_copy(),
            min_tokens=sequence.sampling.min_tokens,
            ends=ends[ends < self._vocab_size],
        )
        return True

    def remove(self, seq_id: int) -> None:
        progress = self._progress.pop(seq_id, None)
        if progress is not None and self._grammars is not None:
            self._grammars.end_text(progress.grammar)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        progress = self._progress[row.seq_id]
        progress.rewind(row.position)
        bits = self._bits(progress, row.position)
        if bits is None and progress.error is None and progress.renewed is None:
            return  # a row behind a draft that cannot be drawn
        words = np.zeros(-(-self._vocab_size // 64), dtype=np.int64)
        if bits is not None:
            octets = words.view(np.uint8)
            octets[: len(bits)] = np.frombuffer(bits, dtype=np.uint8)[: len(octets)]
            if row.position < progress.min_tokens:
                _forbid(octets, progress.ends)
        edits.allow(place, words)

    def advance(self, row: SampleRow, token_id: int) -> None:
        progress = self._progress[row.seq_id]
        if row.position < len(progress.tokens) and progress.tokens[row.position] == token_id:
            return
        progress.rewind(row.position)
        progress.append(token_id)

    def error(self, seq_id: int) -> EngineError | None:
        """Why nothing could be drawn for a sequence, if its structure is the cause."""
        progress = self._progress.get(seq_id)
        return progress.error if progress is not None else None

    def waits(self, row: SampleRow) -> bool:
        """Whether this row must be drawn in a later step, because the grammar is being renewed."""
        progress = self._progress.get(row.seq_id)
        return progress is not None and progress.waits_at == row.position

    def forced(self, row: SampleRow) -> list[int]:
        """Some of the tokens that must follow the one that was drawn for this row."""
        progress = self._progress.get(row.seq_id)
        if progress is None or progress.num_matched != row.position + 1 or progress.is_lost:
            return []
        return progress.matcher.compute_ff_tokens()[:MOST_FORCED]

    def _bits(self, progress: _Progress, position: int) -> bytes | None:
        """The tokens that may follow; None if nothing drawn counts, after an error, or while the
        text waits."""
        if progress.error is not None or not self._is_ready(progress, position):
            return None
        started_s = perf_counter()
        bits = _allowed(progress)
        if progress.matcher.is_error() and not progress.has_new_start:
            # Texts share a lexer, so another text may be the cause.
            progress.renewed = self._renewed(progress)
            if not self._is_ready(progress, position):
                return None
            bits = _allowed(progress)
        progress.left_s += SECONDS_PER_TOKEN - (perf_counter() - started_s)
        if progress.matcher.is_error():
            progress.fail(progress.matcher.get_error())
        elif progress.left_s < 0.0:
            progress.fail("following it takes too long")
        return bits if progress.error is None else None

    def _is_ready(self, progress: _Progress, position: int) -> bool:
        """Whether a mask can be made. If a new start was awaited and has come, the text continues
        from it."""
        if progress.renewed is None:
            return True
        if not progress.renewed.done():
            progress.wait(position)
            return False
        try:
            progress.start_over(progress.renewed.result())
        except EngineError as error:
            progress.error = error
            return False
        if progress.waits_at == position:
            progress.waits_at = None
        return True

    def _renewed(self, progress: _Progress) -> "Future[LLMatcher]":
        if self._grammars is None:
            raise InvariantViolation("there are no grammars")
        return self._grammars.renewed(progress.grammar, progress.start)


def _allowed(progress: _Progress) -> bytes | None:
    if progress.is_lost or progress.matcher.is_error():
        return None
    return progress.matcher.compute_bitmask()


def _forbid(octets: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
    """Forbid these tokens, unless no other is left."""
    before = octets.copy()
    np.bitwise_and.at(octets, ends >> 3, ~(1 << (ends & 7)).astype(np.uint8))
    if not octets.any():
        octets[:] = before
