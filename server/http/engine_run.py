"""The engine's side of one HTTP request, whatever is asked for: places, streams, failures, the end.

Each kind of model has its own run on top of `EngineRun`, which says what it submits and counts.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Self

from engine.client import RequestEvents
from engine.errors import Draining, EngineError, RequestAborted
from engine.types import Event, EventT, FinishReason
from server.http.admission import Lease
from server.http.live_requests import Label


class EngineRun(ABC):
    """One request from its admission on.

    Enter it for the time until a reply owns it: an error within the block closes it, else whoever
    sends the reply calls `aclose`.

    Attributes:
        label: what it is listed by, where it is (`server.http.live_requests`).
        is_open: nobody has closed it.
    """

    def __init__(self, lease: Lease) -> None:
        self.label: Label | None = None
        self.is_open = True
        self._lease = lease
        self._held: list[Lease] = []

    def hold(self, leases: Iterable[Lease]) -> None:
        """Give these back as well at the end: places at other models that take part."""
        self._held.extend(leases)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            await self.aclose()

    async def aclose(self) -> None:
        """Abort what is unfinished and give the places back. Idempotent."""
        self.is_open = False
        try:
            await self._end()
        finally:
            for lease in (self._lease, *self._held):
                lease.release()

    @abstractmethod
    async def _end(self) -> None:
        """Abort what is unfinished, and count how everything ended. Idempotent."""


async def read_events(stream: RequestEvents[EventT]) -> AsyncGenerator[EventT, None]:
    """A stream's events. Leaving it, at whatever event, aborts what is unfinished."""
    events = aiter(stream)
    try:
        async for event in events:
            yield event
    finally:
        await stream.aclose()
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def failure_of(event: Event) -> EngineError | None:
    """What an event says went wrong; None for all others."""
    if event.failure is not None:
        return event.failure.error()
    return cut_short() if event.finish_reason is FinishReason.ABORT else None


def cancelled() -> RequestAborted:
    """What a reply ends with when somebody has cancelled its request."""
    return RequestAborted("the request was cancelled by its id")


def cut_short() -> Draining:
    """The engine ended a request that nobody here had cancelled."""
    return Draining("the server ended the request before it was complete; send it again")
