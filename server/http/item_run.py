"""The engine's side of a request whose items are each answered whole, by one event."""

from contextlib import aclosing
from types import TracebackType
from typing import Any

from engine.contract.request import Event, EventT, Request
from engine.errors import RequestAborted
from engine.worker.client import EngineClient, RequestEvents
from server.http.admission import Lease
from server.http.engine_run import EngineRun, cancelled, check_event, cut_short, read_events
from server.http.item_metrics import ItemMeter
from server.http.live_requests import Progress
from server.http.model_metrics import Outcome


class ItemRun(EngineRun):
    """A request of several items, measured from its admission on; closed when its block is left."""

    def __init__(self, engine: EngineClient, meter: ItemMeter, lease: Lease) -> None:
        super().__init__(lease)
        self._engine = engine
        self._meter = meter
        self._stream: RequestEvents[Any] | None = None
        self._num_open = lease.num_places
        self._error: BaseException | None = None
        self._is_begun = self._is_cancelled = False

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._error = self._error or exc
        await self.aclose()

    async def answers(self, request: Request[EventT]) -> list[EventT]:
        """Send the request to the engine and wait for all its items. Returns their last events in
        order.

        Raises:
            EngineError: the engine refused or failed the request, or died.
        """
        stream = self._engine.submit(request)
        self._stream = stream
        found: dict[int, EventT] = {}
        async with aclosing(read_events(stream)) as events:
            async for event in events:
                check_event(event)
                self.on_event(event)
                if event.finish_reason is not None:
                    found[event.index] = event
                    self._num_open -= 1
                    self._meter.complete(Outcome.COMPLETED)
        if len(found) < request.num_completions:
            raise cancelled() if self._is_cancelled else cut_short()
        return [found[index] for index in range(request.num_completions)]

    def on_event(self, event: Event) -> None:
        """Record an event from the engine."""
        self._is_begun = True
        self._meter.on_event(event)

    def progress(self) -> Progress:
        """How far the request is."""
        num_results = self._lease.num_places
        return Progress(
            is_begun=self._is_begun,
            num_results=num_results,
            num_finished=num_results - self._num_open,
        )

    async def cancel(self) -> None:
        """End the request: `prepare` or `answers` then raises `RequestAborted`. Idempotent."""
        self._is_cancelled = True
        self.stop_preparing()
        if self._stream is not None:
            await self._stream.aclose()

    async def _end(self) -> None:
        if self._num_open:
            error = self._error or RequestAborted("the client closed the connection")
            outcome = Outcome.of_unfinished(error)
            if outcome is not None:
                self._meter.complete(outcome, self._num_open)
            self._num_open = 0
        self._error = None  # its frames would hold this run, and this run the error
        self._meter.close()
        if self._stream is not None:
            await self._stream.aclose()
