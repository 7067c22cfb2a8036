"""Bodies of `GET /models`, `POST /models/load` and `POST /models/unload`: those of llama-server's
router, with more fields."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ChangeOrder(BaseModel):
    """Whoever changes what is served hears of fields that mean nothing."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class LoadModelRequest(ChangeOrder):
    """Load one more model. Every field but `model` may be null: the default."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "small"}})

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="Name of a model that GET /models lists. With ref, the name to serve it under.",
    )
    ref: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="What to load under that name: the name of a listed model or, as far as the "
        "server allows it, a hub id, folder or file.",
    )
    device: str | None = Field(
        None, max_length=32, description="Where it runs, as --device. By default as the server."
    )
    settings: dict[str, Any] | None = Field(
        None,
        max_length=64,
        description="Settings of its own, by the names that `engine` has in a configuration file.",
    )
    wait: bool | None = Field(
        None,
        description="Answer once it serves or could not be loaded. False: at once, with 202; "
        "GET /models tells how it goes. Default true.",
    )


class UnloadModelRequest(ChangeOrder):
    """Unload a model. Every field but `model` may be null: the default."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "small"}})

    model: str = Field(
        min_length=1, max_length=256, description="Id of a model that is there, whatever it does."
    )
    drain_timeout_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="How long its requests may take to finish, in seconds; then they end with an "
        "error. By default as the server's own drain.",
    )
    wait: bool | None = Field(
        None,
        description="Answer once it is gone. False: at once, with 202. Default true.",
    )


@dataclass(slots=True, kw_only=True)
class LoadStatus:
    """What a model is doing. `value` and `failed` are llama-server's."""

    value: Literal["loaded", "loading", "downloading", "unloading", "unloaded"]
    failed: bool
    """It is not there because it could not be loaded."""
    phase: str | None
    """As in `GET /ready`; null while it is not there."""
    progress: float | None
    detail: str | None
    error_code: str | None


@dataclass(slots=True, kw_only=True)
class LoadableCard:
    """A model that is there, or may be loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time at which it became ready; 0 while it is not."""
    owned_by: str = "tandem"
    kind: str | None
    """text or image, once that is known."""
    loadable: bool
    """It may be loaded by its id."""
    settings: dict[str, Any]
    """Those of its own."""
    status: LoadStatus


@dataclass(slots=True, kw_only=True)
class LoadableList:
    """All models that are there or may be loaded."""

    object: Literal["list"] = "list"
    data: list[LoadableCard]


@dataclass(slots=True, kw_only=True)
class ModelChange:
    """A load or unload that was done, or with 202 has begun."""

    success: bool = True
    model: str
    """Its id."""
    status: LoadStatus
