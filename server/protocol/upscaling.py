"""Body and answer of `POST /v1/images/upscale`, and the card of a model for it.

An explicit null means the default. Checks that need the model or the image are in
`server/upscaling/convert.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.contract.examination import Consistency
from engine.errors import InvalidParameter
from server.protocol.common import INT64_MAX, Priority
from server.protocol.file_fields import MAX_STEPS, FileFields, OutputFormat, Prompt
from server.protocol.image_inputs import ImageReference, PictureBody
from server.protocol.models import PictureModelCard

MAX_SCALE = 16
MIN_TILE = 16
MAX_TILE = 2048


class EnlargeFields(FileFields):
    """How to enlarge an image."""

    scale: float | None = Field(
        None,
        ge=1,
        le=MAX_SCALE,
        description="How many times as large each side becomes. The default and the maximum is "
        "the model's own scale; for less, the result is scaled down.",
    )
    tile: int | None = Field(
        None,
        ge=MIN_TILE,
        le=MAX_TILE,
        description="Side of the tiles that the network takes, in pixels of the image. Default: "
        "the model's.",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        le=MAX_TILE,
        description="How many pixels of the image tiles overlap at least. Default: the model's.",
    )
    exact: bool | None = Field(
        None,
        description="Make tiles overlap by so much that every pixel is as it would be without "
        "tiles. Default: as the model's card says.",
    )
    prompt: Prompt | None = Field(
        None, description="What the image shows. Only for models that draw; others refuse it."
    )
    negative_prompt: Prompt | None = Field(
        None, description="What to steer away from. Only for models that draw."
    )
    denoise: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much of the image counts as noise, which the model may draw "
        "differently. Only for models that draw.",
    )
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Number of steps of models that draw. Default: the model's.",
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="Guidance scale of models that draw. Default: the model's."
    )
    scheduler: str | None = Field(
        None, max_length=64, description="Noise schedule of models that draw."
    )
    seed: int | None = Field(
        None, ge=0, le=INT64_MAX, description="Seed of models that draw. Default: a random one."
    )
    fidelity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the result's contradictions to the image that is taken back. "
        "Default 0.",
    )
    face_guard: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How far faces are drawn towards the plainly enlarged image. Default 0.",
    )
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews. Only with stream.")

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n": (1,),
        "mask": (),
        "size": ("auto",),
    }

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.exact and self.overlap is not None:
            raise InvalidParameter(
                "exact sets how much tiles overlap, so it cannot be combined with overlap; leave "
                "one of them out",
                param="overlap",
            )
        return self


class UpscaleImageRequest(PictureBody, EnlargeFields):
    """Enlarge an image."""

    picture_fields: ClassVar[tuple[str, ...]] = ("image",)

    image: ImageReference = Field(
        description="The image: PNG, JPEG or WebP. In a form it is a file."
    )
    heat_map: bool | None = Field(
        None,
        description="Return a picture of where detail was added, and where the result "
        "contradicts the image. Default false.",
    )
    stream: bool | None = Field(
        None, description="Answer with server-sent events, one for each tile."
    )
    priority: Priority = None

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.partial_images and not self.stream:
            raise InvalidParameter("partial_images needs stream: true", param="partial_images")
        return self


@dataclass(slots=True, kw_only=True)
class UpscaledImage:
    """The result: `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None


@dataclass(slots=True, kw_only=True)
class UpscaleFacts:
    """The facts about a request in answers and events."""

    id: str
    model: str
    size: str
    """Size of the result, `WIDTHxHEIGHT`."""
    scale: float
    tile: int
    overlap: int
    exact: bool
    """Every pixel is as it would be without tiles."""
    num_tiles: int
    consistency: Consistency | None
    """Consistency of the image with the result, made smaller again."""
    num_faces: int | None = None
    """Number of faces that face_guard found; null without it."""
    seed: int | None = None
    """Seed of a model that draws."""
    heat_map: str | None = None
    """A PNG of the image's size in base64: blue where detail was added, red where the result
    contradicts the image."""


@dataclass(slots=True, kw_only=True)
class UpscaleAnswer(UpscaleFacts):
    """The answer in the form of OpenAI's image answers; its `data` holds one result."""

    created: int
    data: list[UpscaledImage]
    output_format: OutputFormat
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class UpscaleProgressEvent:
    """The event that a tile is done."""

    type: Literal["image_upscale.progress"] = "image_upscale.progress"
    id: str
    tile: int
    """Number of tiles that are done."""
    num_tiles: int
    progress: float
    """The share of the work that is done, 0 to 1."""


@dataclass(slots=True, kw_only=True)
class PartialUpscaleEvent:
    """A small picture of the result so far, over the original image."""

    type: Literal["image_upscale.partial_image"] = "image_upscale.partial_image"
    id: str
    b64_json: str
    created_at: int
    output_format: OutputFormat
    partial_image_index: int
    size: str
    """Size of the preview."""
    tile: int
    num_tiles: int


@dataclass(slots=True, kw_only=True)
class CompletedUpscaleEvent(UpscaleFacts):
    """The finished image in a stream: `b64_json` or `url`."""

    type: Literal["image_upscale.completed"] = "image_upscale.completed"
    b64_json: str | None
    url: str | None
    created_at: int
    output_format: OutputFormat
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class UpscaleModelCard(PictureModelCard):
    """A served model that enlarges images."""

    scale: int
    default_tile: int
    default_overlap: int
    exact_by_default: bool
    exact_overlap: int | None
    """Overlap in pixels with `exact`; null if it is not known."""
    max_tile: int
