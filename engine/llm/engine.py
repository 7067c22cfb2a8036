"""One model's text engine: schedule → execute → commit, once per step.

Owned by the worker's loop (`engine.loop`), used from its thread alone.
"""

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from engine.config import ResolvedConfig
from engine.llm.decision import StepOutput
from engine.llm.scheduler import Scheduler
from engine.types import EngineStats, GenerateRequest, TokenEvent

if TYPE_CHECKING:  # the executor brings torch, which the engine itself does without
    from engine.llm.executor import Executor


class LLMEngine:
    """Turns queued requests into token events."""

    def __init__(self, scheduler: Scheduler, executor: "Executor", config: ResolvedConfig) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._checks_invariants = config.debug_invariants

    def add(self, request: GenerateRequest) -> None:
        """Queue a request.

        Raises:
            RequestError, CapacityError: it cannot be taken; nothing was changed.
        """
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks now. Unknown ids are ignored; no event follows."""
        self._scheduler.abort(request_id)

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def step(self) -> tuple[list[TokenEvent], EngineStats]:
        """Run one iteration of the batch.

        Raises:
            Exception: whatever the executor raised. What the step wrote is unknown then and was not
                committed, so the engine must not be used again: its process ends, the supervisor
                starts a new one and tells the clients. Trouble with one sequence alone is no
                exception but an event.
        """
        started = perf_counter()
        decision = self._scheduler.schedule()
        scheduled = perf_counter()
        is_empty = not decision.scheduled
        output = StepOutput(outputs=[]) if is_empty else self._executor.execute(decision)
        executed = perf_counter()
        events = self._scheduler.commit(decision, output)
        if self._checks_invariants:
            self._scheduler.check_invariants()
        stats = replace(
            self._scheduler.stats(),
            kv_bytes_committed=self._executor.kv_bytes_committed,
            schedule_time_s=scheduled - started + perf_counter() - executed,
            forward_time_s=output.forward_time_s,
            sample_time_s=output.sample_time_s,
        )
        return events, stats

    def stats(self) -> EngineStats:
        """The account as of now, between two steps: no tokens, no times."""
        return replace(
            self._scheduler.stats(),
            kv_bytes_committed=self._executor.kv_bytes_committed,
            step_tokens=0,
        )

    def shutdown(self) -> None:
        """Release the executor's resources."""
        self._executor.shutdown()
