"""Enlarging by models made for it: sizes, tiles, limits."""

import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any

from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest
from engine.contract.examination import Faithfulness
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter, UnsupportedFeature
from server.http.item_run import ItemRun
from server.images.limits import Size
from server.protocol.upscaling import EnlargeFields, UpscaleImageRequest
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
class Tiling:
    """How an image is cut into tiles, in its pixels."""

    tile: int
    overlap: int
    exact: bool


class TiledEnlarging:
    """What a request asks of a model made for enlarging; `DrawnEnlarging` is the same for one that
    draws.

    Attributes:
        scale: how many times as large each side becomes.

    Raises:
        InvalidParameter: the request asks for a larger scale than the model's, or for tiles that
            are not possible.
        UnsupportedFeature: a field is for models that draw.
    """

    def __init__(self, fields: EnlargeFields, info: UpscaleModelInfo, settings: Settings) -> None:
        _check_fields(fields, info)
        self.info = info
        self._fields = fields
        self._max_pixels = settings.max_upscaled_pixels
        self.scale = scale_up_to(info.scale, fields, info.model)
        self._cut = _tiling(fields, info)

    def size(self, width: int, height: int, num_images: int = 1) -> Size:
        """Width and height of the result.

        Args:
            num_images: number of images of that size in the request.

        Raises:
            InvalidParameter: it is too large, or takes too much work.
        """
        width, height = scaled(width, height, self.scale)
        if width * height > self._max_pixels:
            raise InvalidParameter(
                f"scale {self.scale:g} makes {width}x{height} ({width * height} pixels); this "
                f"server makes at most {self._max_pixels} pixels; ask for a smaller scale",
                param="scale",
            )
        return width, height

    def begin(
        self, run: ItemRun[UpscaleEvent], image: Pixels, priority: int, index: int = 0
    ) -> None:
        """Send an image to the engine.

        Args:
            index: the image's number within the request.

        Raises:
            EngineError: the engine refused it.
        """
        width, height = scaled(image.width, image.height, self.scale)
        run.submit(
            UpscaleRequest(
                request_id=run.id,
                model=self.info.model,
                image=image,
                width=width,
                height=height,
                tile=self._cut.tile,
                overlap=self._cut.overlap,
                exact=self._cut.exact,
                num_previews=self._fields.partial_images or 0,
                faithfulness=faithfulness(self._fields),
                priority=priority,
                arrival_time_s=time.time(),
            )
        )

    def events(self, run: ItemRun[UpscaleEvent]) -> AsyncGenerator[UpscaleEvent, None]:
        """The engine's events.

        Raises:
            RequestAborted, EngineError: as in `ItemRun.events`.
        """
        return run.events()

    def facts(self) -> dict[str, Any]:
        """The fields of `UpscaleFacts` that say how the model enlarges."""
        return asdict(self._cut)

    def settings(self, index: int) -> dict[str, Any]:
        """The fields of a request that enlarges the image of that number alone in the same way."""
        cut = self._cut
        tiles = {"exact": True} if cut.exact else {"tile": cut.tile, "overlap": cut.overlap}
        return {"scale": self.scale, **tiles}


def scaled(width: int, height: int, scale: float) -> Size:
    """A size times a scale; each side has at least one pixel."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def faithfulness(fields: EnlargeFields) -> Faithfulness:
    """How closely the result must keep to the image."""
    return Faithfulness(
        fidelity=fields.fidelity or 0.0,
        face_guard=fields.face_guard or 0.0,
        heat_map=isinstance(fields, UpscaleImageRequest) and bool(fields.heat_map),
    )


def fraction_of(event: UpscaleEvent) -> float:
    """The share of the work that is done at an event."""
    return round(event.tile / event.num_tiles, 4)


def _check_fields(fields: EnlargeFields, info: UpscaleModelInfo) -> None:
    """Refuse fields that are only for models that draw.

    Raises:
        UnsupportedFeature: there is such a field.
    """
    for name in _DRAWING_FIELDS:
        if getattr(fields, name):
            raise UnsupportedFeature(
                f"{name} is for models that draw, and {info.model} only enlarges; leave it out, "
                "or name a model that draws",
                param=name,
            )


def scale_up_to(most: int, fields: EnlargeFields, model: str) -> float:
    """The scale to enlarge by: the request's, else the model's.

    Raises:
        InvalidParameter: the request asks for more than the model's scale.
    """
    scale = float(most) if fields.scale is None else fields.scale
    if scale > most:
        raise InvalidParameter(
            f"scale is {scale:g}; {model} enlarges at most {most} times; ask for that, and enlarge "
            "the result again",
            param="scale",
        )
    return scale


def _tiling(fields: EnlargeFields, info: UpscaleModelInfo) -> Tiling:
    """The tiles to cut the image into.

    Raises:
        InvalidParameter: the tile is too large for the model, or too small for the overlap.
        UnsupportedFeature: tiles cannot be exact, as the network's receptive radius is not known.
    """
    tile = info.default_tile if fields.tile is None else fields.tile
    if tile > info.max_tile:
        raise InvalidParameter(
            f"tile is {tile}; {info.model} takes tiles of at most {info.max_tile} pixels a side "
            "here; ask for a smaller one",
            param="tile",
        )
    if fields.exact:
        return _exact(fields, info, tile)
    if fields.overlap is None:
        overlap = info.default_overlap
        if info.exact_by_default and fields.exact is None and tile > overlap:
            return Tiling(tile, overlap, exact=True)
        return Tiling(tile, min(overlap, tile // 4), exact=False)
    if fields.overlap > tile // 2:
        raise InvalidParameter(
            f"overlap is {fields.overlap}; it can be at most half a tile, here {tile // 2} of "
            f"{tile} pixels, because more would compute each pixel many times; give less, or a "
            "larger tile",
            param="overlap",
        )
    return Tiling(tile, fields.overlap, exact=False)


def _exact(fields: EnlargeFields, info: UpscaleModelInfo, tile: int) -> Tiling:
    if info.receptive_radius is None:
        raise UnsupportedFeature(
            f"exact tiles are not possible with {info.model}, because its network's receptive "
            "radius is not known; leave out exact, and give overlap in pixels",
            param="exact",
        )
    overlap = 2 * info.receptive_radius
    needed = overlap + max(EXACT_CORE, overlap // EXACT_CORE_SHARE)
    if fields.tile is None:
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
