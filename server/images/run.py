"""The engine's side of one image request: submit, read, count, close.

The request is also a job, which can be looked up and cancelled by its id.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from engine.contract.draw import ImageEvent
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.errors import EngineError, RequestAborted
from engine.worker.client import EngineClient, ImageStream
from server.http.admission import Lease
from server.http.engine_run import EngineRun, cancelled, check_event, cut_short, read_events
from server.http.live_requests import Progress
from server.http.model_metrics import Outcome
from server.images.convert import ImageOrder
from server.images.files import encode_image
from server.images.jobs import ImageJob, ImageJobs, new_image_id
from server.images.metrics import ImageMeter
from server.images.replay import replay_fields
from server.protocol.image_answers import BackgroundName, OutputFormatName


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How to write the results."""

    output_format: OutputFormatName
    compression: int
    with_metadata: bool
    background: BackgroundName = "opaque"
    """The background of the finished pictures."""


Finish = Callable[[Pixels], Awaitable[tuple[Pixels, tuple[str, ...]]]]
"""Changes a drawn picture before it is sent; may add warnings."""


class SubmittedOrder:
    """An order that the engine has, and its `job`."""

    def __init__(
        self,
        order: ImageOrder,
        stream: ImageStream,
        meter: ImageMeter,
        jobs: ImageJobs,
        finish: Finish | None = None,
    ) -> None:
        self.order = order
        self._stream = stream
        self._meter = meter
        self._jobs = jobs
        self._finish = finish
        self._finishing: asyncio.Future[tuple[Pixels, tuple[str, ...]]] | None = None
        self.job = ImageJob(order.request, self._close)
        self._num_open = order.request.num_completions
        self._error: BaseException | None = None
        jobs.add(self.job)

    async def events(self) -> AsyncGenerator[ImageEvent, None]:
        """The engine's events, until every image has ended.

        Raises:
            RequestAborted: the job was cancelled by its id.
            EngineError: the engine failed the request, or died.
        """
        try:
            async with aclosing(read_events(self._stream)) as events:
                async for drawn in events:
                    event = await self._finished(drawn)
                    self._take(event)
                    yield event
                    if self._num_open == 0:
                        return
            raise self._cut_short()
        except Exception as error:
            self._error = error
            raise
        finally:
            # Here, so that the job has ended when a client has read the end.
            self._settle()

    async def encode(
        self, pixels: Pixels, options: FileOptions, seed: int | None, index: int = 0
    ) -> bytes:
        """A picture as a file, encoded in a thread. A picture without a seed is a preview and gets
        no metadata.

        Args:
            index: the image's number within the request.
        """
        metadata = None
        if options.with_metadata and seed is not None:
            metadata = replay_fields(self.order, seed, index)
        start_s = time.perf_counter()
        try:
            data = await asyncio.to_thread(
                encode_image, pixels, options.output_format, options.compression, metadata
            )
        except Exception as error:
            self._error = error
            raise
        self._meter.on_file(time.perf_counter() - start_s)
        return data

    async def aclose(self) -> None:
        """Abort what is unfinished and count it. Idempotent."""
        self._settle()
        await self._close()

    async def _finished(self, event: ImageEvent) -> ImageEvent:
        if self._finish is None or event.image is None:
            return event
        work = self._finishing = asyncio.ensure_future(self._finish(event.image))
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if work.cancelled():
            raise self._cut_short()
        image, warnings = work.result()
        return replace(event, image=image, warnings=(*event.warnings, *warnings))

    async def _close(self) -> None:
        if self._finishing is not None:
            self._finishing.cancel()
        await self._stream.aclose()

    def _settle(self) -> None:
        """Count the images that did not end by themselves."""
        if self._num_open:
            self._error = self._error or RequestAborted("the client closed the connection")
            outcome = Outcome.of_unfinished(self._error)
            if outcome is not None:
                self._meter.complete(outcome, self._num_open)
            self._num_open = 0
        self._meter.close()
        self._jobs.end(self.job, self._error)
        self._error = None  # its frames would hold this order, and this order the error

    def _take(self, event: ImageEvent) -> None:
        if event.finish_reason is FinishReason.ABORT:
            raise self._cut_short()
        check_event(event)
        self._meter.on_event(event)
        self.job.on_event(event)
        if event.finish_reason is not None:
            self._num_open -= 1
            self._meter.complete(Outcome.COMPLETED)

    def _cut_short(self) -> EngineError:
        if not self.job.is_live:
            return cancelled()
        return cut_short()


class ImageRun(EngineRun):
    """One image request, measured from its admission on.

    Attributes:
        id: the id of the request, its job and its answer.
    """

    def __init__(
        self, engine: EngineClient, meter: ImageMeter, jobs: ImageJobs, lease: Lease
    ) -> None:
        super().__init__(lease)
        self.id = new_image_id()
        self._engine = engine
        self._meter = meter
        self._jobs = jobs
        self._submitted: SubmittedOrder | None = None

    def submit(self, order: ImageOrder, finish: Finish | None = None) -> SubmittedOrder:
        """Send the request to the engine; its id is this run's.

        Args:
            finish: changes each picture before it is sent.

        Raises:
            Draining, UnknownModel, ModelNotReady: close this.
        """
        stream = self._engine.submit(order.request)
        # The engine has the pictures; here they would stay in memory as long as the request.
        order = replace(order, request=replace(order.request, images=[], mask=None))
        self._meter.begin(order.request)
        self._submitted = SubmittedOrder(order, stream, self._meter, self._jobs, finish)
        return self._submitted

    def progress(self) -> Progress:
        if self._submitted is None:
            return Progress(is_begun=False, num_results=self._lease.num_places, num_finished=0)
        return self._submitted.job.progress()

    async def cancel(self) -> None:
        """End the job, as anyone who knows its id may."""
        self.stop_preparing()
        if self._submitted is not None:
            await self._submitted.job.cancel()

    async def _end(self) -> None:
        if self._submitted is not None:
            await self._submitted.aclose()
