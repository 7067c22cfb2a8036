"""The engine's side of one upscaling request: submit, read, count, close."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from engine.contract.enlarge import UpscaleEvent, UpscaleRequest
from engine.errors import RequestAborted
from engine.worker.client import EngineClient, RequestEvents
from server.http.admission import Lease
from server.http.engine_run import EngineRun, cancelled, check_event, cut_short, read_events
from server.http.item_metrics import ItemMeter
from server.http.live_requests import Progress
from server.http.model_metrics import Outcome


class UpscaleRun(EngineRun):
    """One upscaling request, measured from its admission on.

    Attributes:
        id: the id of the request and its answer.
    """

    def __init__(self, engine: EngineClient, meter: ItemMeter, lease: Lease) -> None:
        super().__init__(lease)
        self.id = f"upscale-{uuid.uuid4().hex}"
        self._engine = engine
        self._meter = meter
        self._stream: RequestEvents[UpscaleEvent] | None = None
        self._tile, self._num_tiles = 0, 1
        self._is_complete = self._is_cancelled = self._is_counted = False
        self._error: BaseException | None = None

    def submit(self, request: UpscaleRequest) -> None:
        """Send the request to the engine; its id is this run's.

        Raises:
            Draining, UnknownModel, ModelNotReady, ModelUnloading: close this.
        """
        self._stream = self._engine.submit(request)

    async def events(self) -> AsyncGenerator[UpscaleEvent, None]:
        """The engine's events, to the last tile.

        Raises:
            RequestAborted: the request was cancelled by its id.
            EngineError: the engine failed the request, or died.
        """
        assert self._stream is not None
        try:
            async with aclosing(read_events(self._stream)) as events:
                async for event in events:
                    check_event(event)
                    self._meter.on_event(event)
                    self._tile, self._num_tiles = event.tile, event.num_tiles
                    self._is_complete = event.finish_reason is not None
                    yield event
            if not self._is_complete:
                raise cancelled() if self._is_cancelled else cut_short()
        except Exception as error:
            self._error = error
            raise

    def progress(self) -> Progress:
        return Progress(
            is_begun=self._tile > 0,
            num_results=1,
            num_finished=int(self._is_complete),
            fraction=round(self._tile / self._num_tiles, 4),
        )

    async def cancel(self) -> None:
        """End the request in the engine, as anyone who knows its id may."""
        self._is_cancelled = True
        self.stop_preparing()
        if self._stream is not None:
            await self._stream.aclose()

    async def _end(self) -> None:
        if not self._is_counted:
            self._is_counted = True
            error = self._error or RequestAborted("the client closed the connection")
            outcome = Outcome.COMPLETED if self._is_complete else Outcome.of_unfinished(error)
            if outcome is not None:
                self._meter.complete(outcome)
            self._meter.close()
            self._error = None  # its frames would hold this, and this the error
        if self._stream is not None:
            await self._stream.aclose()
