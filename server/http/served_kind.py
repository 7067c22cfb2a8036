"""What the server must know to serve a kind of model, beside its routes: `server/kinds.py` has all.

The engine's side of a kind is its row in `engine/kinds.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.kinds import Kind
from engine.types import InfoT
from server.http.admission import Places
from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstQuestion:
    """What the operator may ask a model that is ready, by a line for the shell."""

    words: tuple[str, ...] = ()
    """Of the command `tandem`; none: no command asks this kind of model."""
    path: str = ""
    """Asked with curl where there are no words, or the command does not reach the server."""
    fields: dict[str, Any] = field(default_factory=dict)


class KindMetrics(Protocol):
    """Those of all models of a kind."""

    def forget(self, model: str) -> None:
        """The model is gone, and its numbers with it."""
        ...

    def forget_adapter(self, model: str, adapter: str) -> None:
        """The adapter is gone, and its numbers with it."""
        ...


MetricsT = TypeVar("MetricsT", bound=KindMetrics)
MadeT = TypeVar("MadeT", bound=KindMetrics, covariant=True)


class MakesMetrics(Protocol[MadeT]):
    """Registers a kind's metrics, such as the class of them."""

    def __call__(
        self, registry: CollectorRegistry, engine: EngineClient, *, clock: Callable[[], float]
    ) -> MadeT: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedKind(Generic[InfoT, MetricsT]):
    """How models of one kind are spoken of, admitted and described."""

    kind: Kind[Any, Any, InfoT]
    deed: str
    """What such a model does, after its name."""
    routes: str
    """Those to ask it with."""
    routers: tuple[str, ...]
    """`module:name` of what has its routes. Named and not imported: routes look kinds up."""
    nothing_served: str
    """What to say where there is none."""
    bodies: tuple[type[BaseModel], ...]
    """Of the requests that name such a model."""
    places: Callable[[Settings, EngineConfig], Places]
    """How many requests may be in flight at a model of that configuration."""
    fill_in: Callable[[dict[str, Any], Sequence[InfoT]], None]
    """Put what is known of the models that are ready into the schema of a body's fields."""
    card: Callable[[InfoT], Any]
    """What `GET /v1/models` shows, of a type among `server.kinds.AnyCard`."""
    metrics: MakesMetrics[MetricsT]
    """Those of its models, in the registry of an app."""
    first_question: Callable[[str], FirstQuestion]
    """To the model of that id."""
    default_model: str | None = None
    """What is loaded when somebody asks for the kind and no model of it is served."""
    other_models: tuple[str, ...] = ()
    """What is loaded as well when somebody asks for it by name."""
