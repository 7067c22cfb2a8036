"""What an engine must offer to be stepped by a worker's loop or by a thread."""

from typing import Any, Protocol, TypeVar, runtime_checkable

from engine.types import Event, Request, Stats

RequestT = TypeVar("RequestT", bound=Request[Any], contravariant=True)
EventT = TypeVar("EventT", bound=Event)
StatsT = TypeVar("StatsT", bound=Stats, covariant=True)


class SteppingEngine(Protocol[RequestT, EventT, StatsT]):
    """All calls come from the thread that owns the device."""

    def add(self, request: RequestT) -> None:
        """Queue a request. Raises RequestError or CapacityError when it cannot be taken."""
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request at once, or only its completion of that index; unknown ones are ignored.

        No event follows of what was dropped. An engine may go on with a completion that it cannot
        end alone.
        """
        ...

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def step(self) -> tuple[list[EventT], StatsT]:
        """Run one iteration over everything that is due."""
        ...

    def stats(self) -> StatsT:
        """Statistics as of now."""
        ...

    def shutdown(self) -> None:
        """End threads and give the device's memory back."""
        ...


@runtime_checkable
class PreparingEngine(Protocol):
    """An engine that can prepare for requests while it has none."""

    def use_idle_time(self) -> bool:
        """Prepare for some milliseconds, in which a request would wait. False: all is prepared."""
        ...


AnyEngine = SteppingEngine[Any, Any, Any]
"""One of some kind (`engine.kinds`), such as `engine.llm.engine.LLMEngine`."""
