"""Who carries decisions out: the seam between the scheduler and devices or machines."""

from typing import Protocol

from engine.llm.decision import ScheduleDecision, StepOutput
from engine.llm.model_runner import ModelRunner


class Executor(Protocol):
    """Carries out one decision after the other. Called by one thread."""

    def execute(self, decision: ScheduleDecision) -> StepOutput:
        """Run one step; the answer has one entry per scheduled sequence, in order."""
        ...

    def warm_up(self) -> None:
        """Do what would make the first requests slow."""
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

    def execute(self, decision: ScheduleDecision) -> StepOutput:
        return self._runner.execute(decision)

    def warm_up(self) -> None:
        self._runner.warm_up()

    @property
    def kv_bytes_committed(self) -> int:
        return self._runner.kv_bytes_committed

    def shutdown(self) -> None:
        """Nothing outlives the process."""
