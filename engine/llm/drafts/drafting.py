"""Gets drafts for a step's decodes if the step has nothing else to do, and counts how they went."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from engine.contract.generate import DraftCounts, DrafterName
from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cost.step_budget import StepBudget
from engine.llm.cost.step_cost import StepWork
from engine.llm.drafts.drafter import Drafter
from engine.llm.request import Sequence


class Drafting:
    """The drafters of one scheduler. Each is asked for the sequences that earlier ones had nothing
    for.

    Args:
        drafters: the drafters by name, in the order in which they are asked.
        placeholder_id: the token of rows that are states, which is never drafted; None if prompts
            have no such rows.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        drafters: Mapping[DrafterName, Drafter],
        placeholder_id: int | None = None,
    ) -> None:
        self._most_rows = config.max_decode_rows
        self._drafters = dict(drafters)
        self._placeholder_id = placeholder_id
        self._counts = {name: DraftCounts() for name in drafters}
        self._authors: dict[int, DrafterName] = {}
        """Who made the last draft of each unfinished sequence."""

    @property
    def counts(self) -> dict[str, DraftCounts]:
        """The draft counts by drafter."""
        return {name.value: counts for name, counts in self._counts.items()}

    def of(
        self, scheduled: Mapping[Sequence, int], num_rows: int, budget: StepBudget
    ) -> Iterator[tuple[Sequence, list[int]]]:
        """Yield drafts for some sequences of a step: none in steps with prompts, and none in
        groups.

        Args:
            scheduled: the step's sequences, with the number of tokens that each gets.
            num_rows: how many more rows the step may have.
            budget: tells what rows cost.
        """
        num_rows = min(num_rows, self._most_rows - sum(scheduled.values()))
        left = [
            sequence
            for sequence, num_tokens in scheduled.items()
            if sequence.group is None and num_tokens == sequence.num_missing
        ]
        if num_rows <= 0 or not left:
            return
        willing = [name for name, one in self._drafters.items() if one.may_draft(left)]
        if not willing or not all(sequence.is_decoding for sequence in scheduled):
            return
        price = budget.price(StepWork.of_decodes(s.num_known for s in scheduled))
        for name in willing:
            served = set()
            for sequence, drafts in self._drafters[name].draft(left, num_rows, price):
                if self._placeholder_id in drafts:
                    drafts = drafts[: drafts.index(self._placeholder_id)]
                served.add(sequence.seq_id)
                self._authors[sequence.seq_id] = name
                num_rows -= len(drafts)
                yield sequence, drafts
            left = [sequence for sequence in left if sequence.seq_id not in served]
            if num_rows <= 0 or not left:
                return

    def learn(self, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
        """Learn how a draft went; see `Drafter.learn`."""
        name = self._authors[sequence.seq_id]
        before = self._counts[name]
        self._counts[name] = replace(
            before,
            num_drafts=before.num_drafts + 1,
            num_draft_tokens=before.num_draft_tokens + num_drafts,
            num_accepted_tokens=before.num_accepted_tokens + num_accepted,
        )
        self._drafters[name].learn(sequence, num_drafts, num_accepted)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        self._authors.pop(sequence.seq_id, None)
        for drafter in self._drafters.values():
            drafter.forget(sequence)
