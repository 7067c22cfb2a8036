"""Bodies of `GET /models`, `POST /models/load` and `POST /models/unload`: those of llama-server's
router, with more fields."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ChangeOrder(BaseModel):
    """Base of orders that change what is served. Unknown fields are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class LoadModelRequest(ChangeOrder):
    """Load one more model. Every field except `model` may be null, which means its default."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "small"}})

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="Name of a model that GET /models lists. With ref, the name to serve the "
        "model under.",
    )
    ref: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="The model to load under that name: the name of a listed model or, if the "
        "server allows it, a hub id, folder or file.",
    )
    device: str | None = Field(
        None,
        max_length=32,
        description="Where the model runs, as --device says it. Default: the server's own.",
    )
    settings: dict[str, Any] | None = Field(
        None,
        max_length=64,
        description="The model's own settings, by the names under `engine` in a configuration "
        "file.",
    )
    wait: bool | None = Field(
        None,
        description="Answer once the model serves or could not be loaded. False: answer at once "
        "with 202; GET /models shows the progress. Default true.",
    )


class UnloadModelRequest(ChangeOrder):
    """Unload a model. Every field except `model` may be null, which means its default."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "small"}})

    model: str = Field(
        min_length=1, max_length=256, description="Id of a model that is loaded or loading."
    )
    drain_timeout_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="Seconds that its requests may take to finish; then they end with an error. "
        "Default: the server's own drain time-out.",
    )
    wait: bool | None = Field(
        None,
        description="Answer once the model is gone. False: answer at once with 202. Default true.",
    )


@dataclass(slots=True, kw_only=True)
class LoadStatus:
    """The state of a model. `value` and `failed` are llama-server's."""

    value: Literal["loaded", "loading", "downloading", "unloading", "sleeping", "unloaded"]
    failed: bool
    """The model is not loaded because loading it failed."""
    pinned: bool
    """The model is never put to sleep."""
    phase: str | None
    """The phase, as in `GET /ready`; null if the model is not loaded."""
    progress: float | None
    detail: str | None
    error_code: str | None


@dataclass(slots=True, kw_only=True)
class LoadableCard:
    """A model that is loaded, or may be loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time at which it became ready; 0 if it is not ready."""
    owned_by: str = "tandem"
    kind: str | None
    """The kind of model, such as text or image, once known."""
    loadable: bool
    """The model may be loaded by its id."""
    settings: dict[str, Any]
    """The model's own settings."""
    status: LoadStatus


@dataclass(slots=True, kw_only=True)
class LoadableList:
    """All models that are loaded or may be loaded."""

    object: Literal["list"] = "list"
    data: list[LoadableCard]


@dataclass(slots=True, kw_only=True)
class ModelChange:
    """A load or unload that has ended or, with 202, has begun."""

    success: bool = True
    model: str
    """The model's id."""
    status: LoadStatus
