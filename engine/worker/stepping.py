"""The interface of an engine to the loop or thread that steps it."""

from typing import Any, Protocol, TypeVar, runtime_checkable

from engine.contract.request import Event, Request, Stats
from engine.llm.cache.cache_journal import CacheJournal

RequestT = TypeVar("RequestT", bound=Request[Any], contravariant=True)
EventT = TypeVar("EventT", bound=Event)
StatsT = TypeVar("StatsT", bound=Stats, covariant=True)


class SteppingEngine(Protocol[RequestT, EventT, StatsT]):
    """An engine that is stepped. All calls come from the thread that owns the device."""

    def add(self, request: RequestT) -> None:
        """Queue a request. Raises RequestError or CapacityError if it cannot be taken."""
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request at once, or only one of its completions; unknown ones are ignored.

        No event follows for what was dropped. An engine that cannot end a completion alone may
        continue it.
        """
        ...

    def has_work(self) -> bool:
        """Whether a step would do something."""
        ...

    def step(self) -> tuple[list[EventT], StatsT]:
        """Run one iteration over everything that is due."""
        ...

    def stats(self) -> StatsT:
        """The current statistics."""
        ...

    def shutdown(self) -> None:
        """End threads and release the device's memory."""
        ...


@runtime_checkable
class PreparingEngine(Protocol):
    """An engine that can prepare for requests while it has none."""

    def use_idle_time(self) -> bool:
        """Prepare for some milliseconds, while requests would wait. Returns False if nothing is
        left."""
        ...


@runtime_checkable
class IdentifiedEngine(Protocol):
    """An engine that keeps what it computes beyond the process."""

    def identify(self, digest: str) -> None:
        """Tell it the digest of its model's files (`engine.weights.digest`)."""
        ...


@runtime_checkable
class SharedEngine(Protocol):
    """An engine whose model may be computed by several processes."""

    @property
    def num_processes(self) -> int:
        """How many processes compute the model."""
        ...


@runtime_checkable
class CachingEngine(Protocol):
    """An engine that finds the beginnings of earlier texts again."""

    def reset_prefix_cache(self) -> None:
        """Let no later text find what is cached now. Texts that run keep what they use."""
        ...


@runtime_checkable
class JournalingEngine(Protocol):
    """An engine that can say which beginnings of texts it would find again."""

    @property
    def cache_journal(self) -> CacheJournal | None:
        """What its cache takes in and drops; None if nobody wants to know."""
        ...


AnyEngine = SteppingEngine[Any, Any, Any]
"""An engine of any kind (`engine.contract.kinds`), such as `engine.llm.engine.LLMEngine`."""
