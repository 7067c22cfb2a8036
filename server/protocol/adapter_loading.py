"""Bodies of `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: vLLM's, with `model`
added."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from server.protocol.model_loading import ChangeOrder

_MODEL = (
    "The text or image model that the adapter belongs to. Default: the text model, if there is "
    "only one."
)


class LoadAdapterRequest(ChangeOrder):
    """Load a LoRA adapter. Every field except `lora_name` may be null, which means its default."""

    model_config = ConfigDict(json_schema_extra={"example": {"lora_name": "poet"}})

    lora_name: str = Field(
        min_length=1, max_length=256, description="The name that requests use as their model."
    )
    lora_path: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="The adapter to load, one of those that the server allows: its name there, "
        "or its folder or file. Default: the one named lora_name.",
    )
    load_inplace: bool | None = Field(
        None,
        description="Replace an adapter of that name, whose running requests keep the old one. "
        "Default false: 409 if there is one.",
    )
    model: str | None = Field(None, min_length=1, max_length=256, description=_MODEL)


class UnloadAdapterRequest(ChangeOrder):
    """Unload a LoRA adapter."""

    model_config = ConfigDict(json_schema_extra={"example": {"lora_name": "poet"}})

    lora_name: str = Field(
        min_length=1, max_length=256, description="A loaded adapter, as GET /v1/models lists it."
    )
    model: str | None = Field(
        None, min_length=1, max_length=256, description="The model that it belongs to."
    )


@dataclass(slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter that requests can use now, and the facts about its files."""

    object: Literal["lora_adapter"] = "lora_adapter"
    lora_name: str
    model: str
    """The model that it belongs to."""
    num_layers: int
    """Number of the model's layers that it changes."""
    ranks: list[int]
    """The ranks of its layers."""
    num_left_out: int
    """Number of its layers that the model does not have and that have no effect."""
    left_out: list[str]
    """The first of these layers."""


@dataclass(slots=True, kw_only=True)
class UnloadedAdapter:
    """An adapter that has been unloaded."""

    object: Literal["lora_adapter.deleted"] = "lora_adapter.deleted"
    lora_name: str
    model: str
    deleted: bool = True
