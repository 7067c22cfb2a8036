"""What an engine must offer to be stepped by a worker's loop or by a thread."""

from typing import Protocol

from engine.types import EngineStats, GenerateRequest, TokenEvent


class SteppingEngine(Protocol):
    """`engine.llm.engine.LLMEngine` is one. All calls come from the thread that owns the device."""

    def add(self, request: GenerateRequest) -> None:
        """Queue a request. Raises RequestError or CapacityError when it cannot be taken."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request at once; unknown ids are ignored."""
        ...

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def step(self) -> tuple[list[TokenEvent], EngineStats]:
        """Run one iteration over everything that is due."""
        ...

    def stats(self) -> EngineStats:
        """The account as of now."""
        ...

    def shutdown(self) -> None:
        """Let go of the device."""
        ...
