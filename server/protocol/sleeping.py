"""Bodies and answers of the routes by which models sleep and wake."""

from dataclasses import dataclass

from pydantic import Field

from server.protocol.model_loading import ChangeOrder


class PinRequest(ChangeOrder):
    """Pin a model, or no longer."""

    model: str = Field(min_length=1, max_length=256, description="Id of a model.")
    pinned: bool = Field(description="Whether the model is never put to sleep.")


@dataclass(slots=True)
class Sleeping:
    """Whether the models sleep, in vLLM's words."""

    is_sleeping: bool


@dataclass(slots=True)
class Running:
    """A model that holds memory, in llama-swap's words."""

    model: str
    state: str
    """`ready`, `starting` or `stopping`."""


@dataclass(slots=True)
class RunningList:
    """The models that hold memory now."""

    running: list[Running]
