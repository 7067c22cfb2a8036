"""The answers of the image routes. They are dataclasses, which FastAPI documents and msgspec
encodes; fields that OpenAI does not have come after its own."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from server.protocol.file_fields import OutputFormat

BackgroundName = Literal["opaque", "transparent"]


class JobStatus(StrEnum):
    """The state of the work on a request."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class ImageTokens:
    """Token counts by what the tokens stand for."""

    text_tokens: int
    image_tokens: int


@dataclass(slots=True)
class ImageUsage:
    """The tokens of a request. An image's tokens are its blocks of the model's `size_multiple`."""

    input_tokens: int
    input_tokens_details: ImageTokens
    output_tokens: int
    total_tokens: int


@dataclass(slots=True, kw_only=True)
class ImageData:
    """One image of an answer: `b64_json` or `url`, and the seed that makes it again."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


@dataclass(slots=True, kw_only=True)
class HiresAnswer:
    """The second pass, by the names of the request. Prompts are null if they are those of the first
    pass."""

    first_size: str
    """Size of the first pass."""
    size: str
    upscaler: str
    strength: float
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    prompt: str | None = None
    negative_prompt: str | None = None


@dataclass(slots=True, kw_only=True)
class ImagesAnswer:
    """All images of a request, in the order of their seeds."""

    created: int
    data: list[ImageData]
    background: BackgroundName = "opaque"
    output_format: OutputFormat
    quality: str
    size: str
    usage: ImageUsage
    id: str
    model: str
    seed: int
    """Seed of the first image."""
    task: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    hires: HiresAnswer | None = None
    """The second pass, if the request has one; `size` is then that of the second pass."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """Digests of the files that drew the images, in the form that requests take."""
    then: list[dict[str, Any]] = field(default_factory=list)
    """The stages of the first image, in the form that requests take."""
    warnings: list[str] = field(default_factory=list)
    """Requested options that have no effect."""


@dataclass(slots=True, kw_only=True)
class PartialImageEvent:
    """A preview in a stream."""

    type: str
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: OutputFormat
    partial_image_index: int
    quality: str
    size: str
    id: str
    index: int
    """Index of the image among the `n`."""
    step: int
    num_steps: int
    operation: str = "draw"
    """What the preview shows: `draw`, or the operation of a stage of `then`."""
    stage: int = 0
    """Number of that stage: 0 is the drawing."""


@dataclass(slots=True, kw_only=True)
class StageProgressEvent:
    """How far an image is on its way through the stages of `then`."""

    type: str
    id: str
    index: int
    """Index of the image among the `n`."""
    operation: str
    """`draw`, or the operation of a stage of `then`."""
    stage: int
    """Number of that stage: 0 is the drawing."""
    progress: float
    """The share of this stage's work that is done, 0 to 1."""


@dataclass(slots=True, kw_only=True)
class CompletedImageEvent:
    """A finished image in a stream: `b64_json` or `url`. The usages of a request's events add up to
    its usage."""

    type: str
    b64_json: str | None
    url: str | None
    background: BackgroundName = "opaque"
    created_at: int
    output_format: OutputFormat
    quality: str
    size: str
    usage: ImageUsage
    id: str
    index: int
    seed: int
    made_with: dict[str, Any] = field(default_factory=dict)
    then: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ImageJobAnswer:
    """The progress of a request. Steps are summed over its `n` images."""

    id: str
    object: Literal["image.job"] = "image.job"
    model: str
    created: int
    status: JobStatus
    n: int
    num_finished: int
    step: int
    num_steps: int
    progress: float
    """The share of the work that is done, 0 to 1."""
    operation: str = "draw"
    """What is done now: `draw`, or the operation of a stage of `then`."""
    stage: int = 0
    """Number of that stage: 0 is the drawing."""
    queue_position: int | None
    """Place in the queue: 1 is next; null unless queued. It is an estimate, because the engine
    weighs sizes and priorities."""
    seed: int
    error: str | None
