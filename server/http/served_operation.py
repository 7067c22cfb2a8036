"""The facts about an operation and its models that the server needs, besides its routes.
`server/served.py` lists all operations.

The engine's side of an operation is its row in `engine/contract/operations.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from engine.contract.operations import Operation
from engine.contract.request import InfoT
from engine.contract.settings import EngineConfig
from engine.worker.client import EngineClient
from server.http.admission import Places
from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstQuestion:
    """A first request for a ready model, which the operator gets as a line for the shell."""

    words: tuple[str, ...] = ()
    """Arguments for the command `tandem`; empty if no command reaches such a model."""
    path: str = ""
    """Path for curl, if there are no words or the command cannot reach the server."""
    fields: dict[str, Any] = field(default_factory=dict)


class OperationMetrics(Protocol):
    """The metrics of all models that offer an operation."""

    def forget(self, model: str) -> None:
        """Remove the metrics of a model that is gone."""
        ...

    def forget_adapter(self, model: str, adapter: str) -> None:
        """Remove the metrics of an adapter that is gone."""
        ...


MetricsT = TypeVar("MetricsT", bound=OperationMetrics)
MadeT = TypeVar("MadeT", bound=OperationMetrics, covariant=True)


class MakesMetrics(Protocol[MadeT]):
    """Registers an operation's metrics, as their class does."""

    def __call__(
        self, registry: CollectorRegistry, engine: EngineClient, *, clock: Callable[[], float]
    ) -> MadeT: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedOperation(Generic[InfoT, MetricsT]):
    """How the server speaks of models that offer one operation, admits their requests and describes
    them."""

    operation: Operation[Any, Any, InfoT]
    deed: str
    """What such a model does, to follow its name in a sentence."""
    routes: str
    """The routes that take requests for it."""
    routers: tuple[str, ...]
    """Its routers as `module:name`. They are named and not imported, because routes look
    operations up."""
    nothing_served: str
    """The message if no such model is served."""
    bodies: tuple[type[BaseModel], ...]
    """Bodies of the requests that name such a model."""
    places: Callable[[Settings, EngineConfig], Places]
    """Number of requests that may be in flight at a model of that configuration."""
    fill_in: Callable[[dict[str, Any], Sequence[InfoT]], None]
    """Puts facts about the ready models into the schema of a body's fields."""
    card: Callable[[InfoT], Any]
    """A model's card in `GET /v1/models`; its type is one of `server.served.AnyCard`."""
    metrics: MakesMetrics[MetricsT]
    """Creates the metrics of its models in an app's registry."""
    first_question: Callable[[str], FirstQuestion]
    """The first question for the model of that id."""
    default_model: str | None = None
    """The model that is loaded when a request needs this operation and no served model offers
    it."""
    other_models: tuple[str, ...] = ()
    """Further models that are loaded when a request names them."""
