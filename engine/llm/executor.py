"""Who carries decisions out: the seam between the scheduler and devices or machines."""

from concurrent.futures import Future
from typing import Protocol

from engine.llm.decision import ScheduleDecision, StepOutput
from engine.llm.model_runner import ModelRunner
from engine.structure import Structure


class LaunchedStep(Protocol):
    """A step that the device has been given and that may still run."""

    def collect(self) -> StepOutput:
        """Wait for its end; the answer has one entry per scheduled sequence, in order."""
        ...


class Executor(Protocol):
    """Carries out one decision after the other. Called by one thread."""

    def launch(self, decision: ScheduleDecision) -> LaunchedStep:
        """Begin a step. Each is to be collected once, in the order of the launches, or dropped
        with all that were launched after it.

        When this or `collect` raises, the decision counts for nothing, except that its finished
        sequences stay forgotten: what was new in it is announced again, in the place of what the
        executor may know of it, and all that ran is computed anew.

        The one before may not be collected yet, but those before that are. What happens between
        launch and collect is the executor's choice: on a GPU the step runs meanwhile.
        """
        ...

    def prepare(self, structure: Structure, client: str) -> "Future[object]":
        """Make ahead, beside the steps, what sequences with this structure need. While somebody
        holds the result, announcing one takes no time. Clients take turns at it.

        The future's exception is an EngineError where the structure cannot be honoured.
        """
        ...

    def warm_up(self) -> None:
        """Do what would make the first requests slow."""
        ...

    def use_idle_time(self) -> bool:
        """Do something short that makes later steps faster, while there are none. False: there is
        nothing left."""
        ...

    @property
    def kv_bytes_committed(self) -> int:
        """Physical memory that the KV pool takes so far."""
        ...

    def shutdown(self) -> None:
        """Release what the executor holds; nothing is executed afterwards."""
        ...


class LocalExecutor:
    """One model runner in this process."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def launch(self, decision: ScheduleDecision) -> LaunchedStep:
        return self._runner.launch(decision)

    def prepare(self, structure: Structure, client: str) -> "Future[object]":
        return self._runner.prepare(structure, client)

    def warm_up(self) -> None:
        self._runner.warm_up()

    def use_idle_time(self) -> bool:
        return self._runner.record_ahead()

    @property
    def kv_bytes_committed(self) -> int:
        return self._runner.kv_bytes_committed

    def shutdown(self) -> None:
        """Nothing outlives the process."""
