"""Runs tokens that a structure forces as drafts, so that they take no steps of their own.

The executor reports with a step's outcome which tokens must follow (`SequenceOutput.forced`). Such
a draft is always right, as its row allows no other token, and costs a row.
"""

from collections.abc import Iterable, Iterator, Sequence

from engine.llm.cost.step_budget import Price
from engine.llm.request import Sequence as RunningSequence

HIGHEST_PRICE = 1.0
"""The highest price of a row, in tokens: a row brings one."""


class ForcedDrafts:
    """An `engine.llm.drafts.drafter.Drafter` that is asked before those that guess."""

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return any(one.forced_token_ids for one in decodes)

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. If rows are scarce, the first sequences get them."""
        if price.row >= HIGHEST_PRICE:
            return
        for sequence in decodes:
            drafts = sequence.forced_token_ids[: min(num_rows, sequence.num_draftable)]
            if drafts:
                num_rows -= len(drafts)
                yield sequence, drafts

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`. There is nothing to learn from forced tokens."""

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`. It keeps no state."""
