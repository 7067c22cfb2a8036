"""Body and answer of `POST /v1/images/upscale`, and the card of a model for it.

An explicit null is the default. What needs the model or the image is checked in
`server/upscaling/convert.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from engine.image_types import Consistency
from server.http.multipart import Form
from server.protocol.common import INT64_MAX, Priority
from server.protocol.file_fields import FileFields
from server.protocol.image_answers import OutputFormatName
from server.protocol.image_inputs import ImageReference, image_form_body, read_image_form
from server.protocol.images import MAX_STEPS, NO_EFFECT_FIELDS, Prompt

MAX_SCALE = 16
MIN_TILE = 16
MAX_TILE = 2048

_FILES = ("image",)


class UpscaleImageRequest(FileFields):
    """Enlarge an image."""

    image: ImageReference = Field(
        description="The image: PNG, JPEG or WebP. In a form it is a file."
    )
    scale: float | None = Field(
        None,
        ge=1,
        le=MAX_SCALE,
        description="How many times as large each side becomes. Default, and at most, what the "
        "model makes; less is scaled down from that.",
    )
    tile: int | None = Field(
        None,
        ge=MIN_TILE,
        le=MAX_TILE,
        description="Side of what the network sees at once, in pixels of the image. Default: the "
        "model's.",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        le=MAX_TILE,
        description="By how many pixels of the image tiles overlap at least. Default: the model's.",
    )
    exact: bool | None = Field(
        None,
        description="Tiles overlap by as much as it takes for every pixel to be what it would be "
        "without tiles. Default: where the model's card says so.",
    )
    prompt: Prompt | None = Field(
        None, description="What the image shows. For models that draw; others refuse it."
    )
    negative_prompt: Prompt | None = Field(None, description="What to steer away from; as prompt.")
    denoise: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much of the image is taken for noise, and so may be made up anew. For "
        "models that draw.",
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="Of models that draw. Default: the model's."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="Of models that draw. Default: the model's."
    )
    scheduler: str | None = Field(
        None, max_length=64, description="Noise schedule of models that draw."
    )
    seed: int | None = Field(
        None, ge=0, le=INT64_MAX, description="Of models that draw. Default: a random one."
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
        description="By how much faces are drawn towards the image plainly enlarged. Default 0.",
    )
    heat_map: bool | None = Field(
        None,
        description="Answer with a picture of where detail was added, and where the result "
        "contradicts the image. Default false.",
    )
    stream: bool | None = Field(
        None, description="Answer with server-sent events, one for each tile."
    )
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews. Only with stream.")
    priority: Priority = None

    _no_effect: ClassVar[Mapping[str, str]] = NO_EFFECT_FIELDS
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n": (1,),
        "mask": (),
        "size": ("auto",),
    }

    @model_validator(mode="before")
    @classmethod
    def _read_body(cls, data: Any) -> Any:
        return read_image_form(data, cls, _FILES) if isinstance(data, Form) else data

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.partial_images and not self.stream:
            raise InvalidParameter(
                "partial_images is only allowed with stream: true", param="partial_images"
            )
        if self.exact and self.overlap is not None:
            raise InvalidParameter(
                "exact says how much tiles overlap; leave overlap out, or exact", param="overlap"
            )
        return self


@dataclass(slots=True, kw_only=True)
class UpscaledImage:
    """The result: `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None


@dataclass(slots=True, kw_only=True)
class UpscaleFacts:
    """What answers and events say of a request."""

    id: str
    model: str
    size: str
    """Of the result, `WIDTHxHEIGHT`."""
    scale: float
    tile: int
    overlap: int
    exact: bool
    """Every pixel is what it would be without tiles."""
    num_tiles: int
    consistency: Consistency | None
    """Of the result, made smaller again, with the image."""
    num_faces: int | None = None
    """That face_guard found; null without it."""
    seed: int | None = None
    """Of a model that draws."""
    heat_map: str | None = None
    """A PNG of the image's size, in base64: blue where detail was added, red where the result
    contradicts the image."""


@dataclass(slots=True, kw_only=True)
class UpscaleAnswer(UpscaleFacts):
    """In the shape of OpenAI's image answers, whose `data` holds one here."""

    created: int
    data: list[UpscaledImage]
    output_format: OutputFormatName
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class UpscaleProgressEvent:
    """A tile is done."""

    type: Literal["image_upscale.progress"] = "image_upscale.progress"
    id: str
    tile: int
    """How many are done."""
    num_tiles: int
    progress: float
    """0 to 1."""


@dataclass(slots=True, kw_only=True)
class PartialUpscaleEvent:
    """A small picture of what there is so far, over the image as it was."""

    type: Literal["image_upscale.partial_image"] = "image_upscale.partial_image"
    id: str
    b64_json: str
    created_at: int
    output_format: OutputFormatName
    partial_image_index: int
    size: str
    """Of the preview."""
    tile: int
    num_tiles: int


@dataclass(slots=True, kw_only=True)
class CompletedUpscaleEvent(UpscaleFacts):
    """The finished image: `b64_json` or `url`."""

    type: Literal["image_upscale.completed"] = "image_upscale.completed"
    b64_json: str | None
    url: str | None
    created_at: int
    output_format: OutputFormatName
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class UpscaleModelCard:
    """A served model that enlarges images."""

    id: str
    object: Literal["model"] = "model"
    created: int
    root: str
    owned_by: str = "tandem"
    parent: str | None = None
    architecture: str
    scale: int
    default_tile: int
    default_overlap: int
    exact_by_default: bool
    exact_overlap: int | None
    """What `exact` takes; null where it cannot be told."""
    max_tile: int


def form_body() -> dict[str, Any]:
    """OpenAPI's description of the body as a form."""
    return image_form_body(UpscaleImageRequest, _FILES)
