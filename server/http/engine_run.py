"""The engine's side of one HTTP request, whatever is asked for: places, streams, failures, the end.

Each kind of model has its own run on top of `EngineRun`, which says what it submits and counts.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from starlette.types import Receive

from engine.client import RequestEvents
from engine.errors import Draining, RequestAborted
from engine.types import Event, EventT, FinishReason
from server.http.admission import Lease
from server.http.live_requests import Label
from server.http.sse import until_disconnect

T = TypeVar("T")


class Held(Protocol):
    """What a request holds while it is there."""

    def release(self) -> None:
        """Give it back. Idempotent."""
        ...


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
        self._held: list[Held] = []
        self._preparation: asyncio.Task[Any] | None = None

    def hold(self, held: Iterable[Held]) -> None:
        """Give these back as well at the end, such as places at other models that take part."""
        self._held.extend(held)

    async def prepare(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """The result of what comes before the engine; it ends when the client leaves, or when
        somebody cancels the request.

        Raises:
            RequestAborted: it ended so.
        """
        self._preparation = preparation = asyncio.ensure_future(work)
        try:
            await until_disconnect(receive, _wait_for(preparation))
            if preparation.cancelled():
                raise cancelled()
            return preparation.result()
        finally:
            preparation.cancel()
            self._preparation = None
            del preparation  # its error would hold this frame, and this frame the error

    def stop_preparing(self) -> None:
        """End what comes before the engine, if it is still on its way."""
        if self._preparation is not None:
            self._preparation.cancel()

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
            for held in (self._lease, *self._held):
                held.release()

    @abstractmethod
    async def _end(self) -> None:
        """Abort what is unfinished, and count how everything ended. Idempotent."""


async def _wait_for(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])


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


def check_event(event: Event) -> None:
    """
    Raises:
        EngineError: what the event says went wrong. No local name holds it: its frames would hold
            the name, and pictures with it.
    """
    if event.failure is not None:
        raise event.failure.error()
    if event.finish_reason is FinishReason.ABORT:
        raise cut_short()


def cancelled() -> RequestAborted:
    """What a reply ends with when somebody has cancelled its request."""
    return RequestAborted("the request was cancelled by its id")


def cut_short() -> Draining:
    """The engine ended a request that nobody here had cancelled."""
    return Draining("the server ended the request before it was complete; send it again")
