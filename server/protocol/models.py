"""The entries of `GET /v1/models`: what they share, and those of text and image models."""

from dataclasses import dataclass
from typing import Literal

from engine.contract.draw import GuidanceKind, ImageTask


@dataclass(slots=True, kw_only=True)
class PictureModelCard:
    """The first fields of the cards of models for pictures. The fields after `parent` say what a
    model takes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    root: str
    owned_by: str = "tandem"
    parent: str | None = None
    architecture: str


@dataclass(slots=True, kw_only=True)
class TextModelCard:
    """The first fields of the cards of models for texts. `max_model_len`, vLLM's addition, is the
    number of tokens of the longest possible input."""

    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: int
    root: str
    owned_by: str = "tandem"
    parent: str | None = None


@dataclass(slots=True, kw_only=True)
class ModelCard(TextModelCard):
    """A served text model, or an adapter, whose `parent` and `root` are the model it belongs to.
    `max_model_len` is vLLM's addition. `input_modalities` are text and, if the model sees pictures,
    image. `default_sampling` holds the sampler parameters of requests
    that do not set them."""

    input_modalities: list[str]
    default_sampling: dict[str, float]


@dataclass(slots=True, kw_only=True)
class ImageModelCard(PictureModelCard):
    """A served image model, or an adapter, whose `parent` and `root` are the model it belongs to.
    The fields after `parent` say what its routes take. Fields about denoising are null for a model
    that only does other things."""

    tasks: list[ImageTask]
    guidance: GuidanceKind | None = None
    schedulers: list[str] | None = None
    default_scheduler: str | None = None
    default_size: str
    default_steps: int | None = None
    default_guidance_scale: float | None = None
    default_edit_guidance_scale: float | None = None
    max_edit_images: int
    size_multiple: int
    min_side: int
    max_pixels: int
