"""Carries decisions out on several ranks."""

from concurrent.futures import Future

from engine.contract.structure import Structure
from engine.llm.decision import ScheduleDecision
from engine.llm.executor import LaunchedStep
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.start.ranks import Ranks


class RankedExecutor:
    """An `engine.llm.executor.Executor` of rank 0's runner and the other ranks."""

    def __init__(self, own: ModelRunner, ranks: Ranks) -> None:
        self._own = own
        self._ranks = ranks

    def launch(self, decision: ScheduleDecision) -> LaunchedStep:
        """Run a step on all ranks. If it fails, this process ends: it is not known which exchange
        the others are waiting for."""
        try:
            self._ranks.send(decision)
            return self._own.launch(decision)
        except Exception as error:
            self._ranks.lose(f"{type(error).__name__}: {error}")

    def prepare(self, structure: Structure, client: str) -> "Future[object]":
        """See `Executor`."""
        return self._own.prepare(structure, client)

    def warm_up(self) -> None:
        """See `Executor`; every rank warms itself up, in the same steps."""
        self._own.warm_up()

    def use_idle_time(self) -> bool:
        """See `Executor`."""
        return self._own.use_idle_time()

    @property
    def kv_bytes_committed(self) -> int:
        """The physical memory that the KV pools of all ranks take so far."""
        return self._ranks.parallel.size * self._own.kv_bytes_committed

    def shutdown(self) -> None:
        """End the other ranks."""
        self._ranks.end()
