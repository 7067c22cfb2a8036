"""The engine's side of a request of several items, such as images or texts to embed."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic

from engine.contract.request import EventT, Request
from engine.worker.client import EngineClient, RequestEvents
from server.http.admission import Lease
from server.http.engine_run import EngineRun, cancelled, check_event, cut_short, read_events
from server.http.item_metrics import ItemMeter
from server.http.live_requests import Progress
from server.http.model_metrics import Outcome


class ItemRun(EngineRun, Generic[EventT]):
    """A request of several items, measured from its admission on.

    Args:
        num_items: how many; more than its places, if further ones wait for its own.
        fraction_of: the share of the work that is done at an event; None if events do not tell.
    """

    def __init__(
        self,
        id: str,
        engine: EngineClient,
        meter: ItemMeter,
        lease: Lease,
        num_items: int,
        fraction_of: Callable[[EventT], float] | None = None,
    ) -> None:
        super().__init__(id, lease)
        self._engine = engine
        self._meter = meter
        self._stream: RequestEvents[Any] | None = None
        self._num_items = self._num_open = num_items
        self._is_begun = False
        self._fraction_of = fraction_of
        self._fraction = 0.0

    def submit(self, request: Request[EventT]) -> None:
        """Send the request to the engine; its id is this run's.

        Raises:
            EngineError: the engine refused it; close this.
        """
        self._meter.submit(request)
        try:
            self._stream = self._engine.submit(request)
        except Exception as error:
            self.fail(error)
            raise

    async def events(self) -> AsyncGenerator[EventT, None]:
        """The engine's events, until every item has ended.

        Raises:
            RequestAborted: the request was cancelled by its id.
            EngineError: the engine failed the request, or died.
        """
        assert self._stream is not None
        try:
            async with aclosing(read_events(self._stream)) as events:
                async for event in events:
                    if self._is_cancelled:
                        break
                    check_event(event)
                    async with aclosing(self._followed(event)) as followed:
                        async for event in followed:
                            self._take(event)
                            yield event
                    if self._num_open == 0:
                        return
            raise cancelled() if self._is_cancelled else cut_short()
        except Exception as error:
            self.fail(error)
            raise
        finally:
            # Here, so that all is counted when a client has read the end.
            self._settle()

    async def answers(self, request: Request[EventT]) -> list[EventT]:
        """Send the request to the engine and wait for all its items. Returns their last events in
        order.

        Raises:
            EngineError: the engine refused or failed the request, or died.
        """
        self.submit(request)
        found: dict[int, EventT] = {}
        async with aclosing(self.events()) as events:
            async for event in events:
                if event.finish_reason is not None:
                    found[event.index] = event
        return [found[index] for index in sorted(found)]

    def progress(self) -> Progress:
        return Progress(
            is_begun=self._is_begun,
            num_results=self._num_items,
            num_finished=self._num_items - self._num_open,
            fraction=None if self._fraction_of is None else self._fraction,
        )

    async def _followed(self, event: EventT) -> AsyncGenerator[EventT, None]:
        """Yields an event of the engine, and further events that come before the next one."""
        yield event

    def _take(self, event: EventT) -> None:
        """Record an event."""
        self._is_begun = True
        self._meter.on_event(event)
        if self._fraction_of is not None:
            self._fraction = max(self._fraction, self._fraction_of(event))
        if event.finish_reason is not None:
            self._num_open -= 1
            self._meter.complete(Outcome.COMPLETED)

    def _settle(self) -> None:
        """Count the items that did not end by themselves. Idempotent."""
        if self._num_open and self._unfinished is not None:
            self._meter.complete(self._unfinished, self._num_open)
        self._num_open = 0

    async def _abort(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()

    async def _end(self) -> None:
        self._settle()
        if self._unfinished is not None:
            self._meter.close()
        await self._abort()
