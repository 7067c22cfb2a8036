"""Bodies of `GET /v1/models` and `GET /v1/models/{id}`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, kw_only=True)
class ModelCard:
    """A served model. `max_model_len` is vLLM's addition."""

    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: int
    root: str
    owned_by: str = "tandem"
    parent: str | None = None


@dataclass(slots=True, kw_only=True)
class ModelList:
    """The models that can be asked now."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
