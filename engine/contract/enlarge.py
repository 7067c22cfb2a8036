"""Requests to enlarge images, and their answers."""

from dataclasses import dataclass

from engine.contract.examination import Examination, Faithfulness
from engine.contract.pixels import Pixels
from engine.contract.request import Event, Info, Request, TurnStats


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest(Request["UpscaleEvent"]):
    """An image to enlarge."""

    image: Pixels
    """The image, RGB or RGBA."""
    width: int
    """The width of the result in pixels: from the image's own to the model's `scale` times that."""
    height: int
    tile: int
    """The side of a tile that the network sees at once, in pixels of the image; a smaller image is
    one tile."""
    overlap: int
    """The least overlap of two tiles in pixels of the image; less than `tile`."""
    exact: bool = False
    """Whether every pixel must be as without tiles; this needs an overlap of two receptive
    radii."""
    num_previews: int = 0
    faithfulness: Faithfulness = Faithfulness()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleEvent(Event):
    """What the step of one tile produced. Rows come from the top down, each once."""

    tile: int = 0
    """The number of finished tiles."""
    num_tiles: int = 0
    first_row: int = 0
    rows: bytes = b""
    """Finished rows, as in `Pixels.data`, with the channels of the image. With `fidelity` all rows
    come at the end."""
    preview: Pixels | None = None
    preview_index: int = 0
    examination: Examination | None = None
    """The findings about the result, with the last tile."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleStats(TurnStats):
    """The statistics of an upscaling engine: `num_running` counts images with finished tiles,
    `num_waiting` those before their first tile."""

    step_tiles: int = 0
    num_tiles: int = 0
    output_megapixels: float = 0.0
    """The megapixels of all results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleModelInfo(Info):
    """The info of a model that enlarges images."""

    scale: int
    """The factor by which the network enlarges each side."""
    receptive_radius: int | None
    """The largest distance, in pixels of the image, at which one pixel can affect another; None if
    it is unlimited or unknown."""
    default_tile: int
    default_overlap: int
    exact_by_default: bool
    max_tile: int

    @property
    def log_fields(self) -> dict[str, object]:
        return {"family": self.architecture, "scale": self.scale}
