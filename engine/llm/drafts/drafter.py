"""The interface between the scheduler and the ways to guess how texts continue.

A step computes one more row for each guessed token and keeps the guesses that turn out right
(speculative decoding, Leviathan et al. 2023, arXiv:2211.17192). A token is drawn from its row's
logits with its position's random number, whichever drafter guessed it. It is the same token that
would have come without drafts, not just one from the same distribution. Guesses change when tokens
come, but never the text.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.llm.cost.step_budget import Price
from engine.llm.request import Sequence as RunningSequence


class Drafter(Protocol):
    """A source of drafts. It is asked before each step that has only decodes, and told each draft's
    outcome."""

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """Whether there may be drafts for any of these. It is asked first, because computing a
        row's price takes a while."""
        ...

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterable[tuple[RunningSequence, list[int]]]:
        """Guess how sequences continue.

        Args:
            decodes: the sequences that get one token from the step anyway, without those that
                another drafter has drafted for.
            num_rows: the number of rows that the step has room for, at least one.
            price: what a row costs; drafts that bring less are a loss.

        Returns:
            For some sequences, the tokens that may follow their known ones (`num_known`, the
            pending one included): at least one and at most `num_draftable`.
        """
        ...

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """Learn how a draft went, before the accepted tokens are added to the sequence."""
        ...

    def forget(self, sequence: RunningSequence) -> None:
        """Forget a sequence that has ended, whether it was drafted for or not."""
        ...
