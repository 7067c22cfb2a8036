"""The engine's side of one image request, which is also a job that clients look up by its id."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from engine.contract.draw import ImageEvent
from engine.contract.pixels import Pixels
from engine.errors import RequestAborted
from engine.worker.client import EngineClient
from server.http.admission import Lease
from server.http.engine_run import cancelled
from server.http.item_run import ItemRun
from server.http.live_requests import Progress
from server.images.convert import ImageOrder
from server.images.files import encode_image
from server.images.jobs import ImageJob, ImageJobs
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


Finish = Callable[[Pixels], Coroutine[Any, Any, tuple[Pixels, tuple[str, ...]]]]
"""Changes a drawn picture before it is sent; may add warnings."""


class ImageRun(ItemRun[ImageEvent]):
    """A request for images, which is also a job.

    Attributes:
        order: what the engine has been sent, without its pictures.
    """

    order: ImageOrder

    def __init__(
        self, id: str, engine: EngineClient, meter: ImageMeter, lease: Lease, jobs: ImageJobs
    ) -> None:
        super().__init__(id, engine, meter, lease)
        self._image_meter = meter
        self._jobs = jobs
        self._job: ImageJob | None = None
        self._finish: Finish | None = None

    def begin(self, order: ImageOrder, finish: Finish | None = None) -> None:
        """Send the order to the engine.

        Args:
            finish: changes each picture before it is sent.

        Raises:
            Draining, UnknownModel, ModelNotReady: close this.
        """
        self.submit(order.request)
        # The engine has the pictures; here they would stay in memory as long as the request.
        self.order = replace(order, request=replace(order.request, images=[], mask=None))
        self._finish = finish
        self._image_meter.begin(self.order.request)
        self._job = ImageJob(self.order.request, self.cancel)
        self._jobs.add(self._job)

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
            self.fail(error)
            raise
        self._image_meter.on_file(time.perf_counter() - start_s)
        return data

    def progress(self) -> Progress:
        return super().progress() if self._job is None else self._job.progress()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        if self._job is not None:
            self._jobs.end(self._job, error)

    async def cancel(self) -> None:
        if self._job is not None:
            self._job.end(cancelled())
        await super().cancel()

    async def _completed(self, event: ImageEvent) -> ImageEvent:
        if self._finish is None or event.image is None:
            return event
        image, warnings = await self.perform(self._finish(event.image))
        return replace(event, image=image, warnings=(*event.warnings, *warnings))

    def _take(self, event: ImageEvent) -> None:
        super()._take(event)
        if self._job is not None:
            self._job.on_event(event)

    def _settle(self) -> None:
        if self._job is not None:
            left = RequestAborted("the client closed the connection")
            self._jobs.end(self._job, left if self._num_open else None)
        super()._settle()
