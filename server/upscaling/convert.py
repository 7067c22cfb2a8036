"""Converts the body of an upscaling request to the engine's request: sizes, tiles, limits."""

import time
from dataclasses import dataclass
from typing import Self

from engine.contract.enlarge import UpscaleModelInfo, UpscaleRequest
from engine.contract.examination import Faithfulness
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter, UnsupportedFeature
from server.http.engine_run import EngineRun
from server.images.files import check_sides
from server.images.pictures import Pictures
from server.protocol.image_inputs import ImageReference
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
"""Pixels per side that a tile must add when its overlap is exact: at least `EXACT_CORE`, and at
least the overlap divided by `EXACT_CORE_SHARE`. With fewer, each pixel of the image would be
computed a hundred times."""


@dataclass(frozen=True, slots=True)
class UpscaleLimits:
    """The operator's limits for one request."""

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
    """How an image is cut into tiles, in its pixels."""

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
    """Decode the image, if the result is within the limits.

    Raises:
        InvalidParameter: the file cannot be used, or it or the result is too large.
        UnsupportedFeature: a link or a file id.
    """
    _check_fields(body, info)
    file = await pictures.open(body.image, "image", max_pixels=limits.max_input_pixels)
    width, height = result_size(file.width, file.height, body, info)
    if width * height > limits.max_output_pixels:
        raise InvalidParameter(
            f"scale {scale_of(body, info):g} makes {width}x{height} ({width * height} pixels); "
            f"this server makes at most {limits.max_output_pixels} pixels; ask for a smaller scale",
            param="scale",
        )
    check_sides(body.file_format, width, height)
    [image] = await pictures.decode([file], run, info.model, priority)
    drop_file(body)
    return image


def drop_file(body: UpscaleImageRequest) -> None:
    """Drop the file of the body, which would stay in memory as long as the request."""
    body.image = ImageReference(image_url=None, file_id=None)


def _check_fields(body: UpscaleImageRequest, info: UpscaleModelInfo) -> None:
    """Refuse fields that are only for models that draw.

    Raises:
        UnsupportedFeature: there is such a field.
    """
    for name in _DRAWING_FIELDS:
        if getattr(body, name):
            raise UnsupportedFeature(
                f"{name} is for models that draw, and {info.model} only enlarges; leave it out, "
                "or name a model that draws",
                param=name,
            )


def scale_of(body: UpscaleImageRequest, info: UpscaleModelInfo) -> float:
    """The scale to enlarge by: the request's, else the model's.

    Raises:
        InvalidParameter: the request asks for more than the model's scale.
    """
    scale = float(info.scale) if body.scale is None else body.scale
    if scale > info.scale:
        raise InvalidParameter(
            f"scale is {scale:g}; {info.model} enlarges at most {info.scale} times; ask for that, "
            "and enlarge the result again",
            param="scale",
        )
    return scale


def result_size(
    width: int, height: int, body: UpscaleImageRequest, info: UpscaleModelInfo
) -> tuple[int, int]:
    """Width and height of the result."""
    scale = scale_of(body, info)
    return max(1, round(width * scale)), max(1, round(height * scale))


def tiling(body: UpscaleImageRequest, info: UpscaleModelInfo) -> Tiling:
    """The tiles to cut the image into.

    Raises:
        InvalidParameter: the tile is too large for the model, or too small for the overlap.
        UnsupportedFeature: tiles cannot be exact, as the network's receptive radius is not known.
    """
    tile = info.default_tile if body.tile is None else body.tile
    if tile > info.max_tile:
        raise InvalidParameter(
            f"tile is {tile}; {info.model} takes tiles of at most {info.max_tile} pixels a side "
            "here; ask for a smaller one",
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
            f"overlap is {body.overlap}; it can be at most half a tile, here {tile // 2} of "
            f"{tile} pixels, because more would compute each pixel many times; give less, or a "
            "larger tile",
            param="overlap",
        )
    return Tiling(tile, body.overlap, exact=False)


def _exact(body: UpscaleImageRequest, info: UpscaleModelInfo, tile: int) -> Tiling:
    if info.receptive_radius is None:
        raise UnsupportedFeature(
            f"exact tiles are not possible with {info.model}, because its network's receptive "
            "radius is not known; leave out exact, and give overlap in pixels",
            param="exact",
        )
    overlap = 2 * info.receptive_radius
    needed = overlap + max(EXACT_CORE, overlap // EXACT_CORE_SHARE)
    if body.tile is None:
        tile = max(tile, needed)
    if tile < needed or tile > info.max_tile:
        raise InvalidParameter(
            f"exact needs tiles of at least {needed} pixels with {info.model}, whose network sees "
            f"{info.receptive_radius} pixels in each direction; "
            + (
                f"at most {info.max_tile} are possible here; leave out exact, and give overlap in "
                "pixels"
                if needed > info.max_tile
                else "give a larger tile, or leave it out"
            ),
            param="exact" if needed > info.max_tile else "tile",
        )
    return Tiling(tile, overlap, exact=True)


def faithfulness(body: UpscaleImageRequest) -> Faithfulness:
    """How closely the result must keep to the image."""
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
