"""Bodies of `GET /v1/models` and `GET /v1/models/{id}`."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class ModelCard:
    """A served model. `max_model_len` is vLLM's addition."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: Literal["model"] = "model"
    owned_by: str = "tandem"
    parent: str | None = None


@dataclass(slots=True)
class ModelList:
    """The models that can be asked now."""

    data: list[ModelCard] = field(default_factory=list)
    object: Literal["list"] = "list"
