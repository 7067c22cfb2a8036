"""The engine's side of an HTTP request of any kind: places, streams, failures, the end.

`server.http.item_run.ItemRun` is the run of most kinds; texts and images add what only they have.
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
from server.http.home import fresh_digits
from server.http.live_requests import Label, Progress
from server.http.model_metrics import Outcome

T = TypeVar("T")


class Held(Protocol):
    """Something that a request holds while it runs."""

    def release(self) -> None:
        """Give it back. Idempotent."""
        ...


def new_id(prefix: str) -> str:
    """An id for a request and its answer, which nobody can guess."""
    return f"{prefix}-{fresh_digits(32)}"


class EngineRun(ABC):
    """A request from its admission on.

    Use it as a context manager until a reply owns it: an error within the block closes the run.
    After that, whoever sends the reply calls `aclose`.

    Attributes:
        id: the id of the request and its answer.
        label: how it is listed, if it is (`server.http.live_requests`).
        is_open: whether nobody has closed it.
    """

    def __init__(self, id: str, lease: Lease) -> None:
        self.id = id
        self.label: Label | None = None
        self.is_open = True
        self._lease = lease
        self._held: list[Held] = []
        self._work: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._unfinished: Outcome | None = Outcome.CANCELLED
        """How items without a result are counted; None if the request was refused."""

    def hold(self, held: Iterable[Held]) -> None:
        """Release these at the end, too, such as places at other models that take part."""
        self._held.extend(held)

    def let_go(self) -> None:
        """Release what is held beside the places now, not at the end."""
        for held in self._held:
            held.release()

    async def perform(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work for the request, such as reading its files. One at a time.

        Raises:
            RequestAborted: the request was cancelled.
        """
        self._work = task = asyncio.ensure_future(work)
        try:
            self._check()  # it may have been cancelled after the work before this one,
            await asyncio.wait([task])
            if task.cancelled():
                raise cancelled() if self._is_cancelled else cut_short()
            if task.exception() is None:
                self._check()  # or when this work was just done
            return task.result()
        except Exception as error:
            self.fail(error)
            raise
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            self._work = None
            del task  # its error would hold this frame, and this frame would hold the error

    def _check(self) -> None:
        """Check that the request was not cancelled.

        Raises:
            RequestAborted: it was.
        """
        if self._is_cancelled:
            raise cancelled()

    def fail(self, error: BaseException) -> None:
        """Note why the items without a result will have none."""
        self._unfinished = Outcome.of_unfinished(error)

    @abstractmethod
    def progress(self) -> Progress:
        """How far the request is."""

    async def cancel(self) -> None:
        """End the request, as anyone who knows its id may: whoever awaits its work or its results
        gets `RequestAborted`. Idempotent."""
        self._is_cancelled = True
        if self._work is not None:
            self._work.cancel()
        await self._abort()

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
    async def _abort(self) -> None:
        """Abort what the engine has not finished. Idempotent."""

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
    """The error that ends a reply whose request was cancelled."""
    return RequestAborted("the request was cancelled by its id")


def cut_short() -> Draining:
    """The error for a request that the engine ended although the server had not cancelled it."""
    return Draining("the server ended the request before it was complete; send it again")
