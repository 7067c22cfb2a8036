"""The images of a request in OpenAI's form, whole or as server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from engine.contract.draw import DrawParams, ImageEvent
from engine.contract.operations import DRAW
from engine.contract.pixels import Pixels
from server.http.reply import Reply
from server.http.shape import Shape, encode
from server.http.sse import named_event
from server.images.convert import ImageOrder
from server.images.files import base64_text
from server.images.hires import hires_fields
from server.images.jobs import StageEvent
from server.images.run import FileOptions, ImageRun
from server.images.store import Keep
from server.protocol.image_answers import (
    CompletedImageEvent,
    HiresAnswer,
    ImageData,
    ImagesAnswer,
    ImageTokens,
    ImageUsage,
    PartialImageEvent,
    StageProgressEvent,
)


class ImageReply(Reply):
    """The reply with the images of a run.

    Args:
        event_prefix: `image_generation` or `image_edit`.
        block: side in pixels of the square that counts as one image token.
        inputs: width and height of the input images.
        keep: stores a finished image; None answers with the image itself.
    """

    def __init__(
        self,
        run: ImageRun,
        options: FileOptions,
        *,
        event_prefix: str,
        block: int,
        inputs: Sequence[tuple[int, int]],
        keep: Keep | None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(run, shape)
        self._image_run = run
        self._keep = keep
        self._options = options
        self._prefix = event_prefix
        self._block = block
        self._tells_stages = run.chain is not None and bool(run.chain.stages)
        self._created = int(time.time())
        self._num_input_tokens = sum(self._tokens(*size) for size in inputs)
        self._input_counted = False

    async def whole(self) -> bytes:
        params = self._image_run.order.request.params
        data: list[ImageData | None] = [None] * params.n
        files: list[bytes] = [b""] * params.n
        usages: list[ImageUsage] = []
        warnings: dict[str, None] = dict.fromkeys(self._image_run.order.warnings)
        sizes: set[str] = set()
        async with aclosing(self._image_run.events()) as events:
            async for event in events:
                if event.image is None:
                    continue
                seed = self._seed(event)
                files[event.index] = await self._image_run.encode(
                    event.image, self._options, seed, event.index
                )
                data[event.index] = ImageData(seed=seed)
                usages.append(self._usage(event))
                sizes.add(_size(event.image))
                warnings |= dict.fromkeys(event.warnings)
        found = [image for image in data if image is not None]
        if self._keep is not None:
            for image, file in zip(found, files, strict=True):
                image.url = self._keep(file)
        answer = self._answer(found, usages, list(warnings), sizes.pop())
        return await asyncio.to_thread(self._written, answer, [] if self._keep else files)

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._image_run.events()) as events:
            async for event in events:
                if event.preview is not None:
                    yield await self._partial(event, event.preview)
                if event.image is not None:
                    yield await self._completed(event, event.image)
                elif self._tells_progress(event):
                    yield self._progress(event)

    async def _partial(self, event: ImageEvent, pixels: Pixels) -> bytes:
        file = await self._image_run.encode(pixels, self._options, None)
        name = f"{self._prefix}.partial_image"
        operation, stage = _stage_of(event)
        body = PartialImageEvent(
            type=name,
            b64_json=await asyncio.to_thread(base64_text, file),
            created_at=int(time.time()),
            output_format=self._options.output_format,
            partial_image_index=event.preview_index,
            quality=self._image_run.order.quality,
            size=_size(pixels),
            id=self._image_run.id,
            index=event.index,
            step=event.step,
            num_steps=event.num_steps,
            operation=operation,
            stage=stage,
        )
        return named_event(name, encode(body))

    def _tells_progress(self, event: ImageEvent) -> bool:
        # A preview of the drawing comes when it is decoded, and has the step that it shows.
        is_current = event.preview is None or isinstance(event, StageEvent)
        return self._tells_stages and event.num_steps > 0 and is_current

    def _progress(self, event: ImageEvent) -> bytes:
        operation, stage = _stage_of(event)
        body = StageProgressEvent(
            type=f"{self._prefix}.progress",
            id=self._image_run.id,
            index=event.index,
            operation=operation,
            stage=stage,
            progress=round(event.step / event.num_steps, 4),
        )
        return named_event(body.type, encode(body))

    async def _completed(self, event: ImageEvent, pixels: Pixels) -> bytes:
        seed = self._seed(event)
        file = await self._image_run.encode(pixels, self._options, seed, event.index)
        name = f"{self._prefix}.completed"
        body = CompletedImageEvent(
            type=name,
            b64_json=None if self._keep else await asyncio.to_thread(base64_text, file),
            url=self._keep(file) if self._keep else None,
            created_at=int(time.time()),
            background=self._options.background,
            output_format=self._options.output_format,
            quality=self._image_run.order.quality,
            size=_size(pixels),
            usage=self._usage(event),
            id=self._image_run.id,
            index=event.index,
            seed=seed,
            made_with=dict(self._image_run.order.made_with),
            then=self._image_run.then(event.index),
            warnings=list(dict.fromkeys([*self._image_run.order.warnings, *event.warnings])),
        )
        return named_event(name, encode(body))

    def _answer(
        self, data: list[ImageData], usages: list[ImageUsage], warnings: list[str], size: str
    ) -> ImagesAnswer:
        order = self._image_run.order
        params = order.request.params
        return ImagesAnswer(
            created=self._created,
            data=data,
            background=self._options.background,
            output_format=self._options.output_format,
            quality=order.quality,
            size=size,
            usage=_sum(usages),
            id=self._image_run.id,
            model=order.request.model,
            seed=params.seed,
            task=params.task.value,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            scheduler=order.scheduler,
            hires=_hires(order),
            made_with=dict(order.made_with),
            then=self._image_run.then(0),
            warnings=warnings,
        )

    def _written(self, answer: ImagesAnswer, files: list[bytes]) -> bytes:
        """The JSON of the answer. Runs in a thread, as files are megabytes."""
        for image, file in zip(answer.data, files, strict=False):
            image.b64_json = base64_text(file)
        return self._shape.whole(answer)

    def _seed(self, event: ImageEvent) -> int:
        if event.seed is not None:
            return event.seed
        return self._image_run.order.request.params.seed + event.index

    def _usage(self, event: ImageEvent) -> ImageUsage:
        """The usage of one image. The input counts once, with the image that ends first."""
        assert event.image is not None
        text = image = 0
        if not self._input_counted:
            self._input_counted = True
            text = event.num_prompt_tokens
            image = self._num_input_tokens
        output = self._tokens(event.image.width, event.image.height)
        return _usage(text, image, output)

    def _tokens(self, width: int, height: int) -> int:
        return -(-width // self._block) * -(-height // self._block)


def _stage_of(event: ImageEvent) -> tuple[str, int]:
    """The operation and the number of the stage that an event is about."""
    return (event.operation, event.number) if isinstance(event, StageEvent) else (DRAW.name, 0)


def _hires(order: ImageOrder) -> HiresAnswer | None:
    params = order.request.params
    if not isinstance(params, DrawParams) or params.hires is None:
        return None
    fields = {"first_size": f"{params.width}x{params.height}", "scheduler": order.scheduler}
    return HiresAnswer(**fields | hires_fields(params.hires, params, order.request.prompt))


def _size(pixels: Pixels) -> str:
    return f"{pixels.width}x{pixels.height}"


def _sum(usages: list[ImageUsage]) -> ImageUsage:
    return _usage(
        sum(usage.input_tokens_details.text_tokens for usage in usages),
        sum(usage.input_tokens_details.image_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
    )


def _usage(text_tokens: int, image_tokens: int, output_tokens: int) -> ImageUsage:
    return ImageUsage(
        input_tokens=text_tokens + image_tokens,
        input_tokens_details=ImageTokens(text_tokens, image_tokens),
        output_tokens=output_tokens,
        total_tokens=text_tokens + image_tokens + output_tokens,
    )
