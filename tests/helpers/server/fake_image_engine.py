"""A fake engine that draws: image models beside `fake_engine`'s text models.

A picture is a pure function of prompt, seed and size, so that answers can be compared. Previews,
steps, failures and death come as the real client brings them.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.contract.draw import (
    DenoisingFacts,
    GuidanceKind,
    ImageEvent,
    ImageModelInfo,
    ImageRequest,
    ImageTask,
)
from engine.contract.generate import ModelInfo
from engine.contract.kinds import kind_for
from engine.contract.operations import DRAW, GENERATE
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.contract.status import ModelStatus, Phase
from engine.errors import Draining, EngineDead, ModelNotReady
from server.images.limits import steps_to_run
from tests.helpers.server.fake_engine import Failure, FakeEngineClient

DENOISING = DenoisingFacts(
    guidance=GuidanceKind.CLASSIFIER_FREE,
    schedulers=("ddim", "euler", "dpmpp_2m"),
    default_steps=4,
    default_guidance_scale=4.0,
)


def image_info(model: str = "painter", **changes: object) -> ImageModelInfo:
    """Make the facts of a small ready image model; `changes` replaces fields."""
    info = ImageModelInfo(
        model=model,
        path="/nonexistent",
        architecture="stable-diffusion",
        dtype="float32",
        created=1_700_000_000,
        tasks=tuple(ImageTask),
        default_width=64,
        default_height=64,
        size_multiple=8,
        min_side=32,
        max_pixels=128 * 128,
        denoising=DENOISING,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def picture(request: ImageRequest, index: int) -> Pixels:
    """Make a picture of colour noise, which depends on prompt, seed and size."""
    params, loras = request.params, setting_of(request, index)
    key = zlib.crc32(repr((request.prompt, seed_of(request, index), loras)).encode())
    width, height = params.result_size
    num_bytes = width * height * 3
    pattern = bytes((key + 31 * i) % 256 for i in range(256))
    data = (pattern * (num_bytes // 256 + 1))[:num_bytes]
    return Pixels(width=width, height=height, channels=3, data=data)


def seed_of(request: ImageRequest, index: int) -> int:
    """Return an image's seed; all settings of adapters share the same seeds."""
    return request.params.seed + index % (request.params.n // request.num_settings)


def setting_of(request: ImageRequest, index: int) -> list[tuple[str, float]]:
    """Return the adapters that an image is drawn with."""
    if not request.loras:
        return []
    setting = request.loras[index * request.num_settings // request.params.n]
    return [(use.name, use.scale) for use in setting if use.scale]


class ImageStream:
    """One submitted request; iterates over the events of all its images."""

    def __init__(self, engine: "FakeImageEngine", request: ImageRequest) -> None:
        self.engine = engine
        self.request = request
        self.queue: asyncio.Queue[ImageEvent | EngineDead | None] = asyncio.Queue()
        self.num_open = request.params.n
        self.task: asyncio.Task[None] | None = None
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[ImageEvent]:
        while self.num_open and not self.closed:
            item = await self.queue.get()
            if item is None:
                return
            if isinstance(item, EngineDead):
                self.num_open = 0
                raise item
            if item.finish_reason is not None:
                self.num_open -= 1
            yield item

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.queue.put_nowait(None)
        if self.engine.live_images.pop(self.request.request_id, None) is not None:
            if self.task is not None:
                self.task.cancel()
                self.task = None  # whose end would hold this
            self.engine.aborted.append(self.request.request_id)


class FakeImageEngine(FakeEngineClient):
    """A fake engine with text models as before, and image models.

    Attributes:
        image_requests: the requests so far.
        live_images: streams not yet ended, by request id.
        draw: makes the picture of an image.
        warnings: warnings that come with every picture.
        step_s: the time of a step. `hold` and `release` work as for text.
    """

    def __init__(
        self, *infos: ImageModelInfo | ModelInfo, ready: bool = True, step_s: float = 0.0
    ) -> None:
        given = infos or (image_info(),)
        texts: list[ModelInfo | str] = [i for i in given if isinstance(i, ModelInfo)]
        super().__init__(*texts or ["unused"])
        if not any(isinstance(i, ModelInfo) for i in given):
            self.served.clear()
            self._statuses.clear()
        for name in self.served:
            self._statuses[name] = replace(self._statuses[name], kind=kind_for(GENERATE).name)
        phase = Phase.READY if ready else Phase.LOADING
        for info in given:
            if isinstance(info, ImageModelInfo):
                self.served[info.model] = info
                status = ModelStatus(model=info.model, phase=phase, kind=kind_for(DRAW).name)
                self._statuses[info.model] = status
        self.step_s = step_s
        self.warnings: tuple[str, ...] = ()
        self.draw: Callable[[ImageRequest, int], Pixels] = picture
        self.image_requests: list[ImageRequest] = []
        self.live_images: dict[str, ImageStream] = {}

    def submit(self, request: Any) -> Any:
        if not isinstance(request, ImageRequest):
            return super().submit(request)
        if self.submit_error is not None:
            raise self.submit_error
        if self.stopped:
            raise Draining("the server is shutting down; send the request elsewhere")
        if self._statuses[request.model].phase is not Phase.READY:
            raise ModelNotReady(f"{request.model} is not ready; try again later")
        self.image_requests.append(request)
        stream = ImageStream(self, request)
        self.live_images[request.request_id] = stream
        stream.task = asyncio.get_running_loop().create_task(self._paint(stream, self.failure))
        return stream

    def set_status(self, model: str, phase: Phase, **changes: object) -> None:
        kind = self._statuses[model].kind
        super().set_status(model, phase, **{"kind": kind, **changes})

    def kill_worker(self) -> None:
        """End the worker process with its requests in it."""
        for request_id, stream in list(self.live_images.items()):
            if stream.task is not None:
                stream.task.cancel()
            stream.queue.put_nowait(EngineDead("the engine process ended unexpectedly"))
            del self.live_images[request_id]

    @property
    def last_image_request(self) -> ImageRequest:
        return self.image_requests[-1]

    async def _paint(self, stream: ImageStream, failure: Failure | None) -> None:
        request = stream.request
        num_steps = steps_to_run(request.params)
        preview_steps = _preview_steps(num_steps, request.params.num_previews)
        for step in range(num_steps + 1):
            await self._may_write.wait()
            await asyncio.sleep(self.step_s)
            for index in range(request.params.n):
                if failure is not None and step >= failure.after:
                    stream.queue.put_nowait(_failed(request, index, failure))
                    continue
                event = _step_event(request, index, step, num_steps)
                stream.queue.put_nowait(event)
                if step in preview_steps:
                    preview = self.draw(request, index)
                    number = preview_steps.index(step)
                    stream.queue.put_nowait(
                        replace(event, queue_time_s=None, preview=preview, preview_index=number)
                    )
            if failure is not None and step >= failure.after:
                break
        else:
            self._finish(stream, num_steps)
        self.live_images.pop(request.request_id, None)

    def _finish(self, stream: ImageStream, num_steps: int) -> None:
        request = stream.request
        # Backwards: images may end in any order.
        for index in reversed(range(request.params.n)):
            stream.queue.put_nowait(
                replace(
                    _step_event(request, index, num_steps, num_steps),
                    image=self.draw(request, index),
                    warnings=self.warnings,
                    decode_time_s=0.25,
                    finish_reason=FinishReason.STOP,
                )
            )


def _preview_steps(num_steps: int, num_previews: int) -> Sequence[int]:
    return [1 + i * num_steps // (num_previews + 1) for i in range(num_previews)]


def _step_event(request: ImageRequest, index: int, step: int, num_steps: int) -> ImageEvent:
    waited_s = max(0.0, time.time() - request.arrival_time_s)
    return ImageEvent(
        request_id=request.request_id,
        index=index,
        step=step,
        num_steps=num_steps,
        seed=seed_of(request, index),
        num_prompt_tokens=len(request.prompt.split()),
        queue_time_s=waited_s if step == 0 else None,
        encode_time_s=0.5,
        stage="denoise",
        stage_time_s=0.1 * step,
    )


def _failed(request: ImageRequest, index: int, failure: Failure) -> ImageEvent:
    return ImageEvent(
        request_id=request.request_id,
        index=index,
        finish_reason=FinishReason.ERROR,
        failure=failure.value(),
    )
