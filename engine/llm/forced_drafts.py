"""Tokens that a structure leaves no choice about, run as drafts: no step is taken for each.

The executor tells with a step's outcome what must follow (`SequenceOutput.forced`). Such a draft is
right for certain, as its row allows no other token, and costs a row.
"""

from collections.abc import Iterable, Iterator, Sequence

from engine.config import ResolvedConfig
from engine.llm.drafter import Drafter
from engine.llm.request import Sequence as RunningSequence

HIGHEST_PRICE = 1.0
"""Of a row, in tokens: it brings one."""


class ForcedDrafts:
    """A drafter before another one, which guesses for the sequences that are left.

    Args:
        guesses: None: nobody guesses.
    """

    def __init__(self, config: ResolvedConfig, guesses: Drafter | None) -> None:
        self._most_rows = config.max_decode_rows
        self._guesses = guesses
        self._forced: set[int] = set()
        """Sequences whose drafts in flight were forced."""

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return self._guesses is not None or any(one.forced_token_ids for one in decodes)

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, row_price: float
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. Where rows are few, the first sequences get them."""
        num_rows = min(num_rows, self._most_rows - len(decodes))
        left = []
        for sequence in decodes:
            self._forced.discard(sequence.seq_id)
            most = min(num_rows, sequence.num_draftable) if row_price < HIGHEST_PRICE else 0
            drafts = sequence.forced_token_ids[: max(0, most)]
            if drafts:
                num_rows -= len(drafts)
                self._forced.add(sequence.seq_id)
                yield sequence, drafts
            else:
                left.append(sequence)
        if self._guesses is not None and left:
            yield from self._guesses.draft(left, num_rows, row_price)

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`: of what was forced there is nothing to learn."""
        if self._guesses is not None and sequence.seq_id not in self._forced:
            self._guesses.learn(sequence, num_drafts, num_accepted)

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`."""
        self._forced.discard(sequence.seq_id)
        if self._guesses is not None:
            self._guesses.forget(sequence)
