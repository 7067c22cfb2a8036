"""Runs a draft model's steps: tells its executor about sequences, and learns how long steps
take."""

from collections.abc import Callable
from time import perf_counter

from engine.contract.sampling_params import SAMPLER_PARAMETERS, SamplingParams
from engine.llm.cost.step_cost import StepCost, StepWork
from engine.llm.decision import (
    NewSequence,
    ScheduleDecision,
    ScheduledSequence,
    SequenceOutput,
)
from engine.llm.executor import Executor
from engine.llm.request import Sequence


class DraftSteps:
    """Steps that are run one after the other, each to its end.

    Args:
        clock: `time.perf_counter`, or a test's own.

    Attributes:
        cost: how long steps take.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float] = perf_counter) -> None:
        self.cost = StepCost()
        self._executor = executor
        self._clock = clock
        self._announced: set[int] = set()
        self._new: list[NewSequence] = []
        self._finished: list[int] = []
        """Ids of ended sequences, to be sent with the next step."""

    @property
    def num_sequences(self) -> int:
        """The number of unfinished sequences that the executor knows."""
        return len(self._announced)

    def announce(self, sequence: Sequence) -> None:
        """Announce a sequence with the next step, unless it is announced already."""
        if sequence.seq_id not in self._announced:
            self._announced.add(sequence.seq_id)
            self._new.append(announcement(sequence))

    def forget(self, seq_id: int) -> None:
        """Forget an ended sequence; unknown ids are ignored."""
        if seq_id in self._announced:
            self._announced.remove(seq_id)
            self._finished.append(seq_id)

    def start_over(self) -> None:
        """Have the executor forget all sequences after a failed step, should it know them."""
        self._finished += self._announced
        self._announced, self._new = set(), []

    def run(
        self, shares: list[ScheduledSequence], copies: list[tuple[int, int]]
    ) -> dict[int, SequenceOutput]:
        """Take a step, unless there are no shares.

        Returns:
            The outcome of each sequence, by its id.
        """
        if not shares:
            return {}
        decision = ScheduleDecision(
            new=self._new, scheduled=shares, copies=copies, finished=self._finished
        )
        started_s = self._clock()
        output = self._executor.launch(decision).collect()
        self.cost.observe(StepWork.of(decision), self._clock() - started_s)
        self._new, self._finished = [], []
        return {one.seq_id: one for one in output.outputs}


def announcement(sequence: Sequence) -> NewSequence:
    """Tell a draft model how a sequence's tokens are drawn, without what depends on the text or
    names tokens."""
    sampling, owner = sequence.owner.request.sampling, sequence.owner
    names = [name for name, one in SAMPLER_PARAMETERS.items() if not one.on_host]
    params = {name: getattr(sampling, name) for name in names}
    return NewSequence(
        seq_id=sequence.seq_id,
        prompt_token_ids=[],
        sampling=SamplingParams(**params, order=sampling.order),
        seed=owner.seed,
        index=sequence.index,
        suppressed_token_ids=(),
    )
