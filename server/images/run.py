"""Runs the engine's side of one image request: admit, submit, read, account, close.

As `server/text/generation.py` does for text; besides, the request is a job that can be asked for
and cancelled by its id.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from engine.client import ImageStream
from engine.errors import Draining, RequestAborted, RequestError, error_from_code
from engine.image_types import ImageEvent, Pixels
from engine.types import FinishReason
from server.images.convert import ImageOrder
from server.images.files import encode_image
from server.images.jobs import ImageJob, new_image_id
from server.images.metrics import ImageOutcome
from server.images.replay import replay_fields
from server.protocol.image_answers import OutputFormatName
from server.state import AppState


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How results are written."""

    output_format: OutputFormatName
    compression: int
    with_metadata: bool


class ImageRun:
    """One request from its admission on.

    Enter it for the time until a reply owns it: an error within the block closes it, else whoever
    sends the reply calls `aclose`.

    Raises:
        QueueFull, Draining: by the constructor, before anything expensive has been done.
    """

    def __init__(self, state: AppState, model: str, num_images: int) -> None:
        self.id = new_image_id()
        self.order: ImageOrder
        self._state = state
        self._num_open = num_images
        self._stream: ImageStream | None = None
        self._job: ImageJob | None = None
        self._error: BaseException | None = None
        self._lease = state.admission.admit_images(model, num_images)
        self._meter = state.metrics.images.meter(model)

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

    def submit(self, order: ImageOrder) -> None:
        """Send the request to the engine; its id is this run's.

        Raises:
            Draining, UnknownModel, ModelNotReady: close this.
        """
        self._stream = self._state.engine.submit(order.request)
        # The engine has the pictures; here they would wait in memory as long as the request does.
        without_inputs = replace(order.request, images=[], mask=None)
        self.order = replace(order, request=without_inputs)
        self._job = ImageJob(order.request, self._stream.aclose)
        self._state.image_jobs.add(self._job)

    async def events(self) -> AsyncGenerator[ImageEvent, None]:
        """What the engine brings, until every image has ended.

        Raises:
            RequestAborted: the job was cancelled by its id.
            EngineError: the engine failed the request, or died.
        """
        assert self._stream is not None and self._job is not None
        events = aiter(self._stream)
        try:
            async for event in events:
                self._take(event)
                yield event
                if self._num_open == 0:
                    return
            raise self._cut_short()
        except Exception as error:
            self._error = error
            raise
        finally:
            # Here, so that a client that has read the end finds the job ended.
            self._settle()
            await self._stream.aclose()
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def encode(self, pixels: Pixels, options: FileOptions, seed: int | None) -> bytes:
        """A picture as a file, in a thread. Without a seed it is a preview, without metadata."""
        metadata = None
        if options.with_metadata and seed is not None:
            metadata = replay_fields(self.order, seed)
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
        """Abort what is unfinished and settle the account. Idempotent."""
        try:
            if self._stream is not None:
                self._settle()
                await self._stream.aclose()
        finally:
            self._lease.release()

    def _settle(self) -> None:
        """Account for what did not end by itself. A request that was refused is no image."""
        assert self._job is not None
        if self._num_open:
            self._error = self._error or RequestAborted("the client closed the connection")
            if not isinstance(self._error, RequestError):
                aborted = isinstance(self._error, RequestAborted)
                outcome = ImageOutcome.CANCELLED if aborted else ImageOutcome.FAILED
                self._meter.complete(outcome, self._num_open)
            self._num_open = 0
        self._meter.close()
        self._state.image_jobs.end(self._job, self._error)

    def _take(self, event: ImageEvent) -> None:
        assert self._job is not None
        if event.finish_reason is FinishReason.ERROR:
            raise error_from_code(
                event.error_code or "", event.error_message or "", event.error_param
            )
        if event.finish_reason is FinishReason.ABORT:
            raise self._cut_short()
        self._meter.on_event(event)
        self._job.on_event(event)
        if event.finish_reason is not None:
            self._num_open -= 1
            self._meter.complete(ImageOutcome.COMPLETED)

    def _cut_short(self) -> RequestAborted | Draining:
        assert self._job is not None
        if not self._job.is_live:
            return RequestAborted("the request was cancelled by its id")
        return Draining("the server ended the request before it was complete; send it again")
