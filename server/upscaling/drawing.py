"""Enlarging by models that draw. Their events become those of upscalers.

Models with the task `upscale` were trained for it; those with `restore` redraw the image, enlarged,
in tiles.
"""

import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from engine.contract.draw import (
    DenoisingFacts,
    ImageModelInfo,
    ImageParams,
    ImageRequest,
    ImageTask,
    RestoreParams,
    UpscaleParams,
    UpscalingFacts,
)
from engine.contract.enlarge import UpscaleEvent
from engine.contract.operations import DRAW
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter, UnsupportedFeature
from engine.worker.client import EngineClient
from server.images.convert import ImageOrder, acting_guidance, first_seed
from server.images.limits import Size, check_budget, offered_scheduler
from server.images.made_with import made_with
from server.images.run import ImageRun
from server.protocol.upscaling import EnlargeFields
from server.settings import Settings
from server.upscaling.convert import TiledEnlarging, faithfulness, scale_up_to, scaled

RESTORED_SCALE = 2.0
RESTORED_DENOISE = 0.4
_DRAWING_FIELDS = ("prompt", "negative_prompt", "guidance_scale", "scheduler")
_TILING_FIELDS = ("tile", "overlap", "exact")


def drawing_model(engine: EngineClient, name: str | None) -> ImageModelInfo | None:
    """The image model of that id, if it enlarges images."""
    named = [info.named(name) for info in engine.infos(DRAW)] if name else []
    return next((info for info in named if info is not None and _tasks(info)), None)


class DrawnEnlarging:
    """What a request asks of a model that draws. Methods are those of `TiledEnlarging`.

    Raises:
        InvalidParameter: a value does not fit the model.
        UnsupportedFeature: a field that such a model does not know.
    """

    def __init__(self, fields: EnlargeFields, info: ImageModelInfo, settings: Settings) -> None:
        for name in _TILING_FIELDS:
            if getattr(fields, name) is not None:
                raise UnsupportedFeature(
                    f"{name} cannot be set for {info.model}, which chooses its own tiles; leave it "
                    "out",
                    param=name,
                )
        self.info = info
        self.scale = _scale(fields, info)
        self._fields = fields
        self._settings = settings
        self._seed = first_seed(fields.seed, 1)

    def size(self, width: int, height: int, num_images: int = 1) -> Size:
        first_seed(self._seed, num_images)
        self._check_size(width, height)
        params = self._params(width, height)
        steps = params.num_steps
        if steps == 0 and params.share > 0:
            raise InvalidParameter(
                f"denoise {params.share:g} with {params.num_inference_steps} steps runs none of "
                "them; raise denoise or num_inference_steps, or ask for denoise 0, which only "
                "enlarges",
                param="denoise",
            )
        most = self._settings.max_image_megapixel_steps
        check_budget([(params.width * params.height, steps)], num_images, most)
        return params.width, params.height

    def begin(self, run: ImageRun, image: Pixels, priority: int, index: int = 0) -> None:
        params = self._params(image.width, image.height, index)
        request = ImageRequest(
            request_id=run.id,
            model=self.info.model,
            prompt=self._fields.prompt or "",
            params=params,
            images=[image],
            priority=priority,
            arrival_time_s=time.time(),
        )
        warnings = _unused(self._fields) if params.num_steps == 0 else ()
        run.begin(
            ImageOrder(
                request=request,
                quality="auto",
                scheduler=params.scheduler or self._denoising.default_scheduler,
                warnings=warnings,
                made_with=made_with(self.info),
            )
        )

    async def events(self, run: ImageRun) -> AsyncGenerator[UpscaleEvent, None]:
        """An image's events, with steps in place of tiles."""
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

    def facts(self) -> dict[str, Any]:
        return {"tile": 0, "overlap": 0, "exact": False, "seed": self._seed}

    def settings(self, index: int) -> dict[str, Any]:
        params = self._params(1, 1, index)
        names = ("seed", "num_inference_steps", "guidance_scale")
        found = {name: getattr(params, name) for name in names}
        scheduler = params.scheduler or self._denoising.default_scheduler
        return {"scale": self.scale, **found, "scheduler": scheduler}

    @property
    def _denoising(self) -> DenoisingFacts:
        assert self.info.denoising is not None
        return self.info.denoising

    def _params(self, width: int, height: int, index: int = 0) -> ImageParams:
        fields, info = self._fields, self.info
        width, height = scaled(width, height, self.scale)
        shared: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_inference_steps": fields.num_inference_steps or self._denoising.default_steps,
            "seed": self._seed + index,
            "negative_prompt": fields.negative_prompt or "",
            "guidance_scale": acting_guidance(
                fields.guidance_scale,
                self._denoising.default_guidance_scale,
                fields.prompt or "",
                fields.negative_prompt or "",
                self._denoising,
            ),
            "scheduler": offered_scheduler(
                fields.scheduler, info.model, self._denoising.schedulers
            ),
            "num_previews": fields.partial_images or 0,
            "faithfulness": faithfulness(fields),
        }
        if info.upscaling is not None and _upscales(info):
            return UpscaleParams(noise_level=_noise_level(fields, info.upscaling), **shared)
        strength = RESTORED_DENOISE if fields.denoise is None else fields.denoise
        return RestoreParams(strength=strength, **shared)

    def _check_size(self, width: int, height: int) -> None:
        info, limit = self.info, self._settings.max_upscaled_pixels
        drawn, most = math.prod(scaled(width, height, self.scale)), info.max_restored_pixels
        if info.upscaling is not None and _upscales(info):
            # It always draws at its own scale; the result is resized afterwards.
            drawn, most = width * height * info.upscaling.scale**2, info.max_pixels
        most = min(most, limit)
        if drawn > most:
            raise InvalidParameter(
                f"an image of {width}x{height} makes {drawn} pixels with {info.model}; at most "
                f"{most} are allowed here; send a smaller image, or ask for a smaller scale",
                param="image",
            )


Enlarging = TiledEnlarging | DrawnEnlarging


def _tasks(info: ImageModelInfo) -> list[ImageTask]:
    """The model's tasks that enlarge images."""
    return [task for task in (ImageTask.UPSCALE, ImageTask.RESTORE) if task in info.tasks]


def _upscales(info: ImageModelInfo) -> bool:
    return _tasks(info)[0] is ImageTask.UPSCALE


def _scale(fields: EnlargeFields, info: ImageModelInfo) -> float:
    if info.upscaling is None or not _upscales(info):
        return RESTORED_SCALE if fields.scale is None else fields.scale
    return scale_up_to(info.upscaling.scale, fields, info.model)


def _unused(fields: EnlargeFields) -> tuple[str, ...]:
    """Warnings about fields that have no effect because no step is run."""
    given = [name for name in _DRAWING_FIELDS if getattr(fields, name)]
    return tuple(f"{name} has no effect: denoise 0 only enlarges" for name in given)


def _noise_level(fields: EnlargeFields, facts: UpscalingFacts) -> int:
    if fields.denoise is None:
        return facts.default_noise_level
    return round(fields.denoise * facts.max_noise_level)
