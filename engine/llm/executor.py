"""The interface between the scheduler and the devices or machines that carry out its decisions."""

from concurrent.futures import Future
from typing import Protocol

from engine.contract.structure import Structure
from engine.llm.decision import ScheduleDecision, StepOutput


class LaunchedStep(Protocol):
    """A step that was given to the device and may still run."""

    def collect(self) -> StepOutput:
        """Wait for its end. The answer has one entry per scheduled sequence, in order."""
        ...


class Executor(Protocol):
    """Carries out one decision after the other, called by one thread.

    `engine.llm.runner.model_runner.ModelRunner` does so in this process.
    """

    def launch(self, decision: ScheduleDecision) -> LaunchedStep:
        """Begin a step. Each step must be collected once, in the order of the launches, or dropped
        together with all later ones.

        When this or `collect` raises, the decision is void, except that its finished sequences stay
        forgotten. Its new sequences are announced again and replace what the executor may know of
        them, and everything that ran is computed again.

        The previous step may not be collected yet, but all earlier ones are. The executor decides
        what happens between launch and collect: on a GPU the step runs meanwhile.
        """
        ...

    def prepare(self, structure: Structure, client: str) -> "Future[object]":
        """Prepare, beside the steps, what sequences with this structure need. While the result is
        held, announcing such a sequence takes no time. Clients take turns.

        The future's exception is an EngineError if the structure cannot be honoured.
        """
        ...

    def warm_up(self) -> None:
        """Do what would make the first requests slow."""
        ...

    def use_idle_time(self) -> bool:
        """Do some short work that makes later steps faster, while there are no steps. Returns False
        if nothing is left to do."""
        ...

    @property
    def kv_bytes_committed(self) -> int:
        """The physical memory that the KV pool takes so far."""
        ...

    def shutdown(self) -> None:
        """Release what the executor holds; nothing is executed afterwards."""
        ...
