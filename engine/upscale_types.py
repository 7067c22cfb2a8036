"""What is asked of a model that enlarges images, and what comes back; `engine.types` for texts."""

from dataclasses import dataclass

from engine.image_types import Examination, Faithfulness, Pixels
from engine.types import Event, Info, Request, Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleRequest(Request["UpscaleEvent"]):
    """An image to enlarge."""

    image: Pixels
    """RGB or RGBA."""
    width: int
    """Of the result, in pixels: from the image's own to the model's `scale` times that."""
    height: int
    tile: int
    """Side of what the network sees at once, in pixels of the image; smaller images are seen
    whole."""
    overlap: int
    """By how many pixels of the image two tiles overlap at least; less than `tile`."""
    exact: bool = False
    """Every pixel is what it would be without tiles: needs an overlap of two receptive radii."""
    num_previews: int = 0
    faithfulness: Faithfulness = Faithfulness()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleEvent(Event):
    """What the step of one tile brought. Rows come from the top down, each once."""

    tile: int = 0
    """How many are done."""
    num_tiles: int = 0
    first_row: int = 0
    rows: bytes = b""
    """Finished ones, as in `Pixels.data`, with the channels of the image. With `fidelity` all of
    them come at the end."""
    preview: Pixels | None = None
    preview_index: int = 0
    examination: Examination | None = None
    """Of the result, with the last tile."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleStats(Stats):
    """Those of an upscaling engine: `num_running` counts images of which tiles are done,
    `num_waiting` those before their first."""

    step_tiles: int = 0
    step_time_s: float = 0.0
    """Of the newest step."""
    num_tiles: int = 0
    output_megapixels: float = 0.0
    """Of all results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleModelInfo(Info):
    """Of a model that enlarges images."""

    scale: int
    """How many times the sides of an image its network makes them."""
    receptive_radius: int | None
    """How far away, in pixels of the image, a pixel can matter to another; None: any distance, or
    not known."""
    default_tile: int
    default_overlap: int
    exact_by_default: bool
    max_tile: int

    @property
    def log_fields(self) -> dict[str, object]:
        return {"family": self.architecture, "scale": self.scale}
