"""Who guesses how texts go on: the seam between the scheduler and a way to speculate.

A step computes a row more for each guessed token and keeps those that turn out right (speculative
decoding, Leviathan et al. 2023, arXiv:2211.17192). A token is drawn from its row's logits with its
position's random number, whoever guessed it: it is the one that would have come without drafts, not
only one of the same distribution. Guesses thus change when tokens come, and no text.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.llm.request import Sequence as RunningSequence
from engine.llm.step_budget import Price


class Drafter(Protocol):
    """Asked before each step that has nothing but decodes, told about each draft's outcome."""

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """Whether there may be drafts for any of them. Asked first: a row's price takes a while."""
        ...

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterable[tuple[RunningSequence, list[int]]]:
        """Guess.

        Args:
            decodes: who gets one token from the step, whatever else is drafted; those that another
                drafter has drafted for are not among them.
            num_rows: the step has room for so many rows more, at least one.
            price: what brings less than it costs is a loss.

        Returns:
            For some of them the tokens that may follow its known ones (`num_known`, the pending one
            included), at most `num_draftable`, one at least.
        """
        ...

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """How a draft went: called before the accepted tokens are the sequence's."""
        ...

    def forget(self, sequence: RunningSequence) -> None:
        """It has ended, drafted for or not."""
        ...
