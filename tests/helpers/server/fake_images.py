"""Draws, enlarges and removes backgrounds for `fake_engine`.

A picture is a pure function of prompt, seed and size, so that answers can be compared. An image is
enlarged by repeating pixels. A matte's alpha is 0 in the left half and 255 in the right one.
"""

import time
import zlib
from asyncio import sleep
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.contract.draw import (
    DenoisingFacts,
    GuidanceKind,
    ImageEvent,
    ImageModelInfo,
    ImageRequest,
    ImageTask,
)
from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest
from engine.contract.examination import Consistency, Examination
from engine.contract.matte import (
    MattingEvent,
    MattingModelInfo,
    MattingOutput,
    MattingRequest,
    MattingStats,
)
from engine.contract.pixels import Pixels
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from tests.helpers.server.fake_failure import Failure

SCALE = 2
NUM_TILES = 2
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


def upscaler_info(model: str = "enlarger", **changes: object) -> UpscaleModelInfo:
    info = UpscaleModelInfo(
        model=model,
        path="/nonexistent",
        architecture="Compact",
        dtype="float32",
        created=1_700_000_000,
        scale=SCALE,
        receptive_radius=4,
        default_tile=32,
        default_overlap=8,
        exact_by_default=True,
        max_tile=256,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def matting_info(model: str = "cutter", **changes: object) -> MattingModelInfo:
    """Make the facts of a small ready model; `changes` replaces fields."""
    info = MattingModelInfo(
        model=model,
        path="/nonexistent",
        architecture="U2Net",
        dtype="float32",
        created=1_700_000_000,
        side=320,
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


async def draw(
    engine: Any, request: ImageRequest, failure: Failure | None
) -> AsyncIterator[ImageEvent]:
    num_steps = sum(each.num_steps for each in request.params.passes)
    preview_steps = _preview_steps(num_steps, request.params.num_previews)
    images = range(request.params.n)
    for step in range(num_steps + 1):
        await engine.may_write.wait()
        await sleep(engine.step_s)
        if failure is not None and step >= failure.after:
            for rejected in rejection(request, failure.value().error(), images):
                yield rejected
            return
        for index in images:
            event = _step_event(request, index, step, num_steps)
            yield event
            if step in preview_steps:
                preview = engine.draw(request, index)
                number = preview_steps.index(step)
                yield replace(event, queue_time_s=None, preview=preview, preview_index=number)
    # Backwards: images may end in any order.
    for index in reversed(images):
        yield replace(
            _step_event(request, index, num_steps, num_steps),
            image=engine.draw(request, index),
            warnings=engine.warnings,
            decode_time_s=0.25,
            finish_reason=FinishReason.STOP,
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


async def enlarge(
    engine: Any, request: UpscaleRequest, failure: Failure | None
) -> AsyncIterator[UpscaleEvent]:
    large = enlarged(request)
    half = large.height // 2 * large.width * large.channels
    for tile, rows in enumerate((large.data[:half], large.data[half:]), 1):
        is_last = tile == NUM_TILES
        if is_last:
            await engine.may_write.wait()
            if failure is not None:
                [rejected] = rejection(request, failure.value().error(), [0])
                yield rejected
                return
        event = UpscaleEvent(
            request_id=request.request_id, tile=tile, num_tiles=NUM_TILES, rows=rows
        )
        if tile <= request.num_previews:
            event = replace(event, preview=request.image, preview_index=tile - 1)
        if is_last:
            found = examination(request) if request.faithfulness.heat_map else None
            event = replace(event, finish_reason=FinishReason.STOP, examination=found)
        yield event


def examination(request: UpscaleRequest) -> Examination:
    """The findings about a result of which the image is the heat map."""
    consistency = Consistency(psnr_db=42.125, rms_error=2.0, share_changed=0.25)
    return Examination(consistency=consistency, heat_map=request.image)


def enlarged(request: UpscaleRequest) -> Pixels:
    """Make the result: each pixel several times."""
    image = request.image
    levels = np.frombuffer(image.data, np.uint8)
    levels = levels.reshape(image.height, image.width, image.channels)
    rows = np.arange(request.height) * image.height // request.height
    columns = np.arange(request.width) * image.width // request.width
    data = np.ascontiguousarray(levels[rows][:, columns]).tobytes()
    return Pixels(width=request.width, height=request.height, channels=image.channels, data=data)


async def matte(
    engine: Any, request: MattingRequest, failure: Failure | None
) -> AsyncIterator[MattingEvent]:
    yield MattingEvent(
        request_id=request.request_id, stage="solve", progress=0.25, queue_time_s=0.5
    )
    await engine.may_write.wait()
    if failure is not None:
        [rejected] = rejection(request, failure.value().error(), [0])
        yield rejected
    else:
        yield MattingEvent(
            request_id=request.request_id,
            image=cut(request),
            unknown_fraction=0.125,
            uncertain_fraction=0.75,
            width=request.image.width,
            height=request.image.height,
            warnings=("a warning",),
            finish_reason=FinishReason.STOP,
        )
    stats = MattingStats(num_steps=1, num_images=1, num_pixels=100, step_time_s=0.5)
    engine.publish(request.model, stats)


def cut(request: MattingRequest) -> Pixels:
    """Make the result."""
    image = request.image
    shape = (image.height, image.width, image.channels)
    colours = np.frombuffer(image.data, np.uint8).reshape(shape)[..., :3]
    alpha = np.full(shape[:2], 255, np.uint8)
    alpha[:, : shape[1] // 2] = 0
    result = {
        MattingOutput.CUTOUT: np.dstack([colours, alpha]),
        MattingOutput.COMPOSITE: np.where(
            alpha[..., None] > 0, colours, np.array(request.colour, np.uint8)
        ),
    }.get(request.output, alpha[..., None])
    return Pixels(
        width=image.width,
        height=image.height,
        channels=result.shape[2],
        data=result.astype(np.uint8).tobytes(),
    )
