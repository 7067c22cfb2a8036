"""The engine's side of one image request, which is also a job that clients look up by its id."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
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
from server.images.chain import Chain
from server.images.convert import ImageOrder
from server.images.files import encode_image
from server.images.jobs import ImageJob, ImageJobs, StageEvent
from server.images.metrics import ImageMeter
from server.images.replay import replay_fields
from server.protocol.file_fields import OutputFormat
from server.protocol.image_answers import BackgroundName


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How to write the results."""

    output_format: OutputFormat
    compression: int
    with_metadata: bool
    background: BackgroundName = "opaque"
    """The background of the finished pictures."""


class ImageRun(ItemRun[ImageEvent]):
    """A request for images, which is also a job.

    Attributes:
        order: what the engine has been sent, without its pictures.
        chain: the stages after the drawing, if there are any.
    """

    order: ImageOrder

    def __init__(
        self, id: str, engine: EngineClient, meter: ImageMeter, lease: Lease, jobs: ImageJobs
    ) -> None:
        super().__init__(id, engine, meter, lease, lease.num_places)
        self._image_meter = meter
        self._jobs = jobs
        self._job: ImageJob | None = None
        self.chain: Chain | None = None

    def begin(self, order: ImageOrder, chain: Chain | None = None) -> None:
        """Send the order to the engine.

        Args:
            chain: the stages after the drawing.

        Raises:
            Draining, UnknownModel, ModelNotReady: close this.
        """
        self.submit(order.request)
        # The engine has the pictures; here they would stay in memory as long as the request.
        self.order = replace(order, request=replace(order.request, images=[], mask=None))
        self.chain = chain
        self._image_meter.begin(self.order.request)
        num_stages = 0 if chain is None else len(chain.stages)
        self._job = ImageJob(self.order.request, self.cancel, num_stages)
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
            metadata |= {"then": then} if (then := self.then(index)) else {}
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

    def then(self, index: int) -> list[dict[str, Any]]:
        """The stages after the drawing, by the names of the request that makes the image of that
        number again."""
        return [] if self.chain is None else self.chain.settings(index)

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

    async def _followed(self, event: ImageEvent) -> AsyncGenerator[ImageEvent, None]:
        if self.chain is None or event.image is None:
            yield event
            return
        async with aclosing(self.chain.follow(event, self)) as events:
            async for event in events:
                yield event

    async def _abort(self) -> None:
        await super()._abort()
        if self.chain is not None:
            await self.chain.cancel()

    def _take(self, event: ImageEvent) -> None:
        if not isinstance(event, StageEvent):
            super()._take(event)
        if self._job is not None:
            self._job.on_event(event)

    def _settle(self) -> None:
        if self._job is not None:
            left = RequestAborted("the client closed the connection")
            self._jobs.end(self._job, left if self._num_open else None)
        super()._settle()
