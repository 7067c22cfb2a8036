"""The facts about an operation and its models that the server needs, besides its routes.
`server/served.py` lists all operations.

The engine's side of an operation is its row in `engine/contract/operations.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from engine.contract.operations import Operation
from engine.contract.request import AdaptableInfo, Info, InfoT
from engine.contract.settings import EngineConfig
from engine.worker.client import EngineClient
from server.http.admission import Places
from server.http.model_metrics import Clock, OperationMetrics
from server.settings import Settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstQuestion:
    """A first request for a ready model, which the operator gets as a line for the shell."""

    words: tuple[str, ...] = ()
    """Arguments for the command `tandem`; empty if no command reaches such a model."""
    path: str = ""
    """Path for curl, if there are no words or the command cannot reach the server."""
    fields: dict[str, Any] = field(default_factory=dict)


CardT = TypeVar("CardT", bound="DataclassInstance")
MetricsT = TypeVar("MetricsT", bound=OperationMetrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedOperation(Generic[InfoT, MetricsT]):
    """How the server describes the models that offer one operation, and admits their requests."""

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
    card: Callable[[InfoT], Any]
    """A model's card in `GET /v1/models`; its type is one of `server.served.AnyCard`."""
    metrics: Callable[[CollectorRegistry, EngineClient, Clock], MetricsT]
    """Creates the metrics of its models in an app's registry."""
    first_question: Callable[[str], FirstQuestion]
    """The first question for the model of that id."""
    fill_in: Callable[[dict[str, Any], Sequence[InfoT]], None] = lambda properties, infos: None
    """Puts facts about the ready models into the schema of a body's fields."""
    default_model: str | None = None
    """The model that is loaded when a request needs this operation and no served model offers
    it."""
    other_models: tuple[str, ...] = ()
    """Further models that are loaded when a request names them."""


def card_of(card: type[CardT], info: Info, **more: Any) -> CardT:
    """A model's card with the facts that `info` has by the names of its fields, and with more."""
    known = {one.name: getattr(info, one.name) for one in fields(card) if hasattr(info, one.name)}
    return card(**{**known, "id": info.name, "root": info.model, **more})


def parent_of(info: AdaptableInfo) -> str | None:
    """The model of an adapter; None for a model."""
    return None if info.adapter is None else info.model


def sequence_places(what: str, settings: Settings, config: EngineConfig) -> Places:
    """The places at a model that runs a batch of sequences; `what` is their name."""
    num_running = config.replicas * config.max_num_seqs
    return Places(what=what, num_running=num_running, num_waiting=settings.max_queued_requests)
