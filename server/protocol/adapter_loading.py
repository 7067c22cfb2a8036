"""Bodies of `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: vLLM's and `model`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from server.protocol.model_loading import ChangeOrder

_MODEL = (
    "The text or image model that it belongs to. Default: the text model, if it is the only one."
)


class LoadAdapterRequest(ChangeOrder):
    """Load a LoRA adapter. Every field but `lora_name` may be null: the default."""

    model_config = ConfigDict(json_schema_extra={"example": {"lora_name": "poet"}})

    lora_name: str = Field(
        min_length=1, max_length=256, description="The name by which requests ask for it as model."
    )
    lora_path: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Which of the adapters that the server allows: its name there, or its folder "
        "or file. By default the one of that name.",
    )
    load_inplace: bool | None = Field(
        None,
        description="Take the place of the adapter of that name, whose running requests go on with "
        "what they have. Default false: 409 if there is one.",
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
    """An adapter that requests can ask for now, and what was found in its files."""

    object: Literal["lora_adapter"] = "lora_adapter"
    lora_name: str
    model: str
    """That it belongs to."""
    num_layers: int
    """Of the model, that it changes."""
    ranks: list[int]
    """Those that its layers have."""
    num_left_out: int
    """Its layers that the model has not, and that nobody will miss."""
    left_out: list[str]
    """The first of them."""


@dataclass(slots=True, kw_only=True)
class UnloadedAdapter:
    """An adapter that is gone."""

    object: Literal["lora_adapter.deleted"] = "lora_adapter.deleted"
    lora_name: str
    model: str
    deleted: bool = True
