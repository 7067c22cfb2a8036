"""Bodies that the image routes answer with. Dataclasses, which FastAPI documents and msgspec
encodes; fields that OpenAI does not have come after its own."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

OutputFormatName = Literal["png", "jpeg", "webp"]
BackgroundName = Literal["opaque", "transparent"]


class JobStatus(StrEnum):
    """Where the work on a request is."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class ImageTokens:
    """Tokens by what they stand for."""

    text_tokens: int
    image_tokens: int


@dataclass(slots=True)
class ImageUsage:
    """What a request took. An image's tokens are its blocks of the model's `size_multiple`."""

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
    """The second pass, by the names of the request. Prompts are null where they are the first's."""

    first_size: str
    """Of the first pass."""
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
    output_format: OutputFormatName
    quality: str
    size: str
    usage: ImageUsage
    id: str
    model: str
    seed: int
    """Of the first image."""
    task: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    hires: HiresAnswer | None = None
    """Of a request with a second pass; `size` is its, too."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """Digests of the files that drew it, as a request takes them."""
    warnings: list[str] = field(default_factory=list)
    """What was asked for and cannot act."""


@dataclass(slots=True, kw_only=True)
class PartialImageEvent:
    """A preview within a stream."""

    type: str
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: OutputFormatName
    partial_image_index: int
    quality: str
    size: str
    id: str
    index: int
    """Which of the `n` images."""
    step: int
    num_steps: int


@dataclass(slots=True, kw_only=True)
class CompletedImageEvent:
    """A finished image within a stream: `b64_json` or `url`. The usages of a request's events add
    up to its usage."""

    type: str
    b64_json: str | None
    url: str | None
    background: BackgroundName = "opaque"
    created_at: int
    output_format: OutputFormatName
    quality: str
    size: str
    usage: ImageUsage
    id: str
    index: int
    seed: int
    made_with: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ImageJobAnswer:
    """How far the work on a request is. Steps are summed over its `n` images."""

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
    """0 to 1."""
    queue_position: int | None
    """1 is next; null unless queued. An estimate: the engine weighs sizes and priorities."""
    seed: int
    error: str | None
