"""Tokens that a structure leaves no choice about, run as drafts: no step is taken for each.

The executor tells with a step's outcome what must follow (`SequenceOutput.forced`). Such a draft is
right for certain, as its row allows no other token, and costs a row.
"""

from collections.abc import Iterable, Iterator, Sequence

from engine.llm.request import Sequence as RunningSequence
from engine.llm.step_budget import Price

HIGHEST_PRICE = 1.0
"""Of a row, in tokens: it brings one."""


class ForcedDrafts:
    """An `engine.llm.drafter.Drafter`, to be asked before those that guess."""

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return any(one.forced_token_ids for one in decodes)

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. Where rows are few, the first sequences get them."""
        if price.row >= HIGHEST_PRICE:
            return
        for sequence in decodes:
            drafts = sequence.forced_token_ids[: min(num_rows, sequence.num_draftable)]
            if drafts:
                num_rows -= len(drafts)
                yield sequence, drafts

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`: of what was forced there is nothing to learn."""

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`: it keeps nothing."""
