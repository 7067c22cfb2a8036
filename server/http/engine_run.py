"""The engine's side of an HTTP request of any kind: places, streams, failures, the end.

Each kind of model has its own run on top of `EngineRun`, which says what it submits and counts.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from engine.contract.request import Event, EventT, FinishReason
from engine.errors import Draining, RequestAborted
from engine.worker.client import RequestEvents
from server.http.admission import Lease
from server.http.live_requests import Label

T = TypeVar("T")


class Held(Protocol):
    """Something that a request holds while it runs."""

    def release(self) -> None:
        """Give it back. Idempotent."""
        ...


class EngineRun(ABC):
    """A request from its admission on.

    Use it as a context manager until a reply owns it: an error within the block closes the run.
    After that, whoever sends the reply calls `aclose`.

    Attributes:
        label: how it is listed, if it is (`server.http.live_requests`).
        is_open: whether nobody has closed it.
    """

    def __init__(self, lease: Lease) -> None:
        self.label: Label | None = None
        self.is_open = True
        self._lease = lease
        self._held: list[Held] = []
        self._preparation: asyncio.Task[Any] | None = None

    def hold(self, held: Iterable[Held]) -> None:
        """Release these at the end, too, such as places at other models that take part."""
        self._held.extend(held)

    async def prepare(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of what comes before the engine.

        Raises:
            RequestAborted: somebody cancelled the request.
        """
        self._preparation = preparation = asyncio.ensure_future(work)
        try:
            await asyncio.wait([preparation])
            if preparation.cancelled():
                raise cancelled()
            return preparation.result()
        finally:
            preparation.cancel()
            self._preparation = None
            del preparation  # its error would hold this frame, and this frame would hold the error

    def stop_preparing(self) -> None:
        """End the work that comes before the engine, if it is still running."""
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


async def read_events(stream: RequestEvents[EventT]) -> AsyncGenerator[EventT, None]:
    """A stream's events. Leaving the iteration at any event aborts what is unfinished."""
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
    """Raise the failure that an event reports.

    Raises:
        EngineError: the failure of the event. No local variable holds it: its frames would keep the
            variable alive, and pictures with it.
    """
    if event.failure is not None:
        raise event.failure.error()
    if event.finish_reason is FinishReason.ABORT:
        raise cut_short()


def cancelled() -> RequestAborted:
    """The error that ends a reply whose request somebody has cancelled."""
    return RequestAborted("the request was cancelled by its id")


def cut_short() -> Draining:
    """The error for a request that the engine ended although nobody here had cancelled it."""
    return Draining("the server ended the request before it was complete; send it again")
