"""From the body of an upscaling request to what the engine takes: sizes, tiles, limits."""

import time
from dataclasses import dataclass
from typing import Self

from engine.errors import InvalidParameter, UnsupportedFeature
from engine.image_types import Faithfulness, Pixels
from engine.upscale_types import UpscaleModelInfo, UpscaleRequest
from server.http.engine_run import EngineRun
from server.images.files import check_sides
from server.images.pictures import Pictures
from server.protocol.upscaling import UpscaleImageRequest
from server.settings import Settings

_DRAWING_FIELDS = (
    "prompt",
    "negative_prompt",
    "denoise",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
)
EXACT_CORE = 64
EXACT_CORE_SHARE = 4
"""Pixels a side that a tile with exact overlap is of use for: at least so many, and at least this
part of the overlap. With less each pixel of the image would be computed a hundred times."""


@dataclass(frozen=True, slots=True)
class UpscaleLimits:
    """What the operator allows one request."""

    max_input_pixels: int
    max_output_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            max_input_pixels=settings.max_image_input_pixels,
            max_output_pixels=settings.max_upscaled_pixels,
        )


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image is to be cut, in its pixels."""

    tile: int
    overlap: int
    exact: bool


async def read_image(
    body: UpscaleImageRequest,
    info: UpscaleModelInfo,
    limits: UpscaleLimits,
    pictures: Pictures,
    run: EngineRun,
    priority: int,
) -> Pixels:
    """Decode the image, if the result may be as large.

    Raises:
        InvalidParameter: the file cannot be used, or it or the result is too large.
        UnsupportedFeature: a link or a file id.
    """
    _check_fields(body, info)
    file = await pictures.open(body.image, "image", max_pixels=limits.max_input_pixels)
    width, height = result_size(file.width, file.height, body, info)
    if width * height > limits.max_output_pixels:
        raise InvalidParameter(
            f"scale {scale_of(body, info):g} makes {width}x{height}, {width * height} pixels; this "
            f"server makes at most {limits.max_output_pixels}; ask for a smaller scale",
            param="scale",
        )
    check_sides(body.file_format, width, height)
    [image] = await pictures.decode([file], run, info.model, priority)
    return image


def _check_fields(body: UpscaleImageRequest, info: UpscaleModelInfo) -> None:
    """
    Raises:
        UnsupportedFeature: a field of models that draw.
    """
    for name in _DRAWING_FIELDS:
        if getattr(body, name):
            raise UnsupportedFeature(
                f"{name} is for models that draw; {info.model} knows nothing but the image: leave "
                f"it out, or name such a model",
                param=name,
            )


def scale_of(body: UpscaleImageRequest, info: UpscaleModelInfo) -> float:
    """
    Raises:
        InvalidParameter: more than the model makes.
    """
    scale = float(info.scale) if body.scale is None else body.scale
    if scale > info.scale:
        raise InvalidParameter(
            f"scale is {scale:g}; {info.model} makes images {info.scale} times as large at most; "
            f"ask for that, and enlarge the result once more",
            param="scale",
        )
    return scale


def result_size(
    width: int, height: int, body: UpscaleImageRequest, info: UpscaleModelInfo
) -> tuple[int, int]:
    """Width and height."""
    scale = scale_of(body, info)
    return max(1, round(width * scale)), max(1, round(height * scale))


def tiling(body: UpscaleImageRequest, info: UpscaleModelInfo) -> Tiling:
    """
    Raises:
        InvalidParameter: a tile that is too large for the model, or too small for the overlap.
        UnsupportedFeature: exact tiles of a network of which it is not known what they take.
    """
    tile = info.default_tile if body.tile is None else body.tile
    if tile > info.max_tile:
        raise InvalidParameter(
            f"tile is {tile}; {info.model} sees at most {info.max_tile} pixels a side at once here",
            param="tile",
        )
    if body.exact:
        return _exact(body, info, tile)
    if body.overlap is None:
        overlap = info.default_overlap
        if info.exact_by_default and body.exact is None and tile > overlap:
            return Tiling(tile, overlap, exact=True)
        return Tiling(tile, min(overlap, tile // 4), exact=False)
    if body.overlap > tile // 2:
        raise InvalidParameter(
            f"overlap is {body.overlap}; of a tile of {tile} pixels it may be half, as more "
            f"computes each pixel many times; give less, or a larger tile",
            param="overlap",
        )
    return Tiling(tile, body.overlap, exact=False)


def _exact(body: UpscaleImageRequest, info: UpscaleModelInfo, tile: int) -> Tiling:
    if info.receptive_radius is None:
        raise UnsupportedFeature(
            f"exact tiles are not possible with {info.model}: how far its network sees is not "
            f"known; give overlap in pixels",
            param="exact",
        )
    overlap = 2 * info.receptive_radius
    needed = overlap + max(EXACT_CORE, overlap // EXACT_CORE_SHARE)
    if body.tile is None:
        tile = max(tile, needed)
    if tile < needed or tile > info.max_tile:
        raise InvalidParameter(
            f"exact takes tiles of at least {needed} pixels with {info.model}, whose "
            f"network sees {info.receptive_radius} pixels far; "
            + (
                f"at most {info.max_tile} are possible here; give overlap in pixels"
                if needed > info.max_tile
                else "give a larger tile, or none"
            ),
            param="exact" if needed > info.max_tile else "tile",
        )
    return Tiling(tile, overlap, exact=True)


def faithfulness(body: UpscaleImageRequest) -> Faithfulness:
    """How closely the result is to keep to the image."""
    return Faithfulness(
        fidelity=body.fidelity or 0.0,
        face_guard=body.face_guard or 0.0,
        heat_map=bool(body.heat_map),
    )


def upscale_request(
    body: UpscaleImageRequest,
    image: Pixels,
    info: UpscaleModelInfo,
    cut: Tiling,
    *,
    request_id: str,
    priority: int,
) -> UpscaleRequest:
    """The engine's request."""
    width, height = result_size(image.width, image.height, body, info)
    return UpscaleRequest(
        request_id=request_id,
        model=info.model,
        image=image,
        width=width,
        height=height,
        tile=cut.tile,
        overlap=cut.overlap,
        exact=cut.exact,
        num_previews=body.partial_images or 0,
        faithfulness=faithfulness(body),
        priority=priority,
        arrival_time_s=time.time(),
    )
