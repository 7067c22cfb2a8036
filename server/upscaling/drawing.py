"""Enlarging by models that draw: converts bodies to image orders, and their events to those of
upscalers.

Models with the task `upscale` were trained for it; those with `restore` redraw the image, enlarged,
in tiles.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from engine.contract.draw import (
    DenoisingFacts,
    GuidanceKind,
    ImageModelInfo,
    ImageParams,
    ImageRequest,
    ImageTask,
)
from engine.contract.enlarge import UpscaleEvent
from engine.contract.operations import DRAW
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter, UnsupportedFeature
from engine.worker.client import EngineClient
from server.http.engine_run import EngineRun
from server.images.convert import ImageLimits, ImageOrder, new_seed
from server.images.files import check_sides
from server.images.limits import check_budget, offered_scheduler, steps_to_run
from server.images.made_with import made_with
from server.images.pictures import Pictures
from server.images.run import ImageRun
from server.protocol.upscaling import UpscaleImageRequest
from server.upscaling.convert import UpscaleLimits, drop_file, faithfulness

RESTORED_SCALE = 2.0
RESTORED_DENOISE = 0.4
_DRAWING_FIELDS = ("prompt", "negative_prompt", "guidance_scale", "scheduler")
_TILING_FIELDS = ("tile", "overlap", "exact")


def drawing_model(engine: EngineClient, name: str | None) -> ImageModelInfo | None:
    """The image model of that id, if it enlarges images."""
    named = [info.named(name) for info in engine.infos(DRAW)] if name else []
    return next((info for info in named if info is not None and _tasks(info)), None)


async def read_small(
    body: UpscaleImageRequest,
    info: ImageModelInfo,
    limits: UpscaleLimits,
    pictures: Pictures,
    run: EngineRun,
    priority: int,
) -> tuple[Pixels, float]:
    """Decode the image, if the model can make the result, and return it with the scale.

    Raises:
        InvalidParameter: the file cannot be used, or it or the result is too large.
        UnsupportedFeature: a field that such a model does not know.
    """
    for name in _TILING_FIELDS:
        if getattr(body, name) is not None:
            raise UnsupportedFeature(
                f"{name} cannot be set for {info.model}, which chooses its own tiles; leave it out",
                param=name,
            )
    scale = _scale(body, info)
    file = await pictures.open(body.image, "image", max_pixels=limits.max_input_pixels)
    small = file.width, file.height
    _check_size(small, scale, info, limits)
    check_sides(body.file_format, *_enlarged(small, scale))
    [image] = await pictures.decode([file], run, info.model, priority)
    drop_file(body)
    return image, scale


def drawing_order(
    body: UpscaleImageRequest,
    image: Pixels,
    scale: float,
    info: ImageModelInfo,
    limits: ImageLimits,
    *,
    request_id: str,
    priority: int,
) -> ImageOrder:
    """The image engine's request.

    Raises:
        InvalidParameter: a value does not fit the model or the limits.
    """
    denoising = info.denoising
    assert denoising is not None
    width, height = _enlarged((image.width, image.height), scale)
    params = ImageParams(
        task=_tasks(info)[0],
        width=width,
        height=height,
        num_inference_steps=body.num_inference_steps or denoising.default_steps,
        seed=new_seed() if body.seed is None else body.seed,
        negative_prompt=body.negative_prompt or "",
        guidance_scale=_guidance(body, denoising),
        scheduler=offered_scheduler(body.scheduler, info.model, denoising.schedulers),
        strength=RESTORED_DENOISE if body.denoise is None else body.denoise,
        noise_level=_noise_level(body, info),
        num_previews=body.partial_images or 0,
        faithfulness=faithfulness(body),
    )
    steps = steps_to_run(params)
    if steps == 0 and params.strength > 0:
        raise InvalidParameter(
            f"denoise {params.strength:g} with {params.num_inference_steps} steps runs none of "
            "them; raise denoise or num_inference_steps, or ask for denoise 0, which only "
            "enlarges",
            param="denoise",
        )
    check_budget([(width * height, steps)], 1, limits.max_megapixel_steps)
    request = ImageRequest(
        request_id=request_id,
        model=info.model,
        prompt=body.prompt or "",
        params=params,
        images=[image],
        priority=priority,
        arrival_time_s=time.time(),
    )
    warnings = _unused(body) if steps == 0 else ()
    scheduler = params.scheduler or denoising.default_scheduler
    return ImageOrder(request, "auto", scheduler, warnings, made_with(info, ()))


async def upscale_events(run: ImageRun) -> AsyncGenerator[UpscaleEvent, None]:
    """An image's events, with steps in place of tiles.

    Raises:
        RequestAborted, EngineError: as in `ImageRun.events`.
    """
    step = 0
    async with aclosing(run.events()) as events:
        async for event in events:
            # A preview comes when it is decoded, and has the step that it shows.
            step = max(step, event.step)
            if event.num_steps:
                yield UpscaleEvent(
                    request_id=event.request_id,
                    tile=step,
                    num_tiles=event.num_steps,
                    rows=b"" if event.image is None else event.image.data,
                    preview=event.preview,
                    preview_index=event.preview_index,
                    examination=event.examination,
                    warnings=(*run.order.warnings, *event.warnings),
                    finish_reason=None if event.image is None else FinishReason.STOP,
                )


def _tasks(info: ImageModelInfo) -> list[ImageTask]:
    """The model's tasks that enlarge images."""
    return [task for task in (ImageTask.UPSCALE, ImageTask.RESTORE) if task in info.tasks]


def _upscales(info: ImageModelInfo) -> bool:
    return _tasks(info)[0] is ImageTask.UPSCALE


def _scale(body: UpscaleImageRequest, info: ImageModelInfo) -> float:
    if info.upscaling is None or not _upscales(info):
        return RESTORED_SCALE if body.scale is None else body.scale
    scale = float(info.upscaling.scale) if body.scale is None else body.scale
    if scale > info.upscaling.scale:
        raise InvalidParameter(
            f"scale is {scale:g}; {info.model} enlarges at most {info.upscaling.scale} times; ask "
            "for that, and enlarge the result again",
            param="scale",
        )
    return scale


def _enlarged(small: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = small
    return max(1, round(width * scale)), max(1, round(height * scale))


def _check_size(
    small: tuple[int, int], scale: float, info: ImageModelInfo, limits: UpscaleLimits
) -> None:
    width, height = _enlarged(small, scale)
    drawn, most = width * height, min(info.max_restored_pixels, limits.max_output_pixels)
    if info.upscaling is not None and _upscales(info):
        # It always draws at its own scale; the result is resized afterwards.
        drawn = small[0] * small[1] * info.upscaling.scale**2
        most = min(info.max_pixels, limits.max_output_pixels)
    if drawn > most:
        raise InvalidParameter(
            f"an image of {small[0]}x{small[1]} makes {drawn} pixels with {info.model}; at most "
            f"{most} are allowed here; send a smaller image, or ask for a smaller scale",
            param="image",
        )


def _guidance(body: UpscaleImageRequest, denoising: DenoisingFacts) -> float:
    """The guidance scale. Without prompts it is 1: guidance between two empty prompts changes
    nothing and costs a second row."""
    if body.guidance_scale is not None:
        return body.guidance_scale
    idle = not body.prompt and not body.negative_prompt
    if idle and denoising.guidance is GuidanceKind.CLASSIFIER_FREE:
        return 1.0
    return denoising.default_guidance_scale


def _unused(body: UpscaleImageRequest) -> tuple[str, ...]:
    """Warnings about fields that have no effect because no step is run."""
    given = [name for name in _DRAWING_FIELDS if getattr(body, name)]
    return tuple(f"{name} has no effect: denoise 0 only enlarges" for name in given)


def _noise_level(body: UpscaleImageRequest, info: ImageModelInfo) -> int:
    if info.upscaling is None or not _upscales(info):
        return 0
    if body.denoise is None:
        return info.upscaling.default_noise_level
    return round(body.denoise * info.upscaling.max_noise_level)
