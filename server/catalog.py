"""Finds the served model that a request means."""

from collections.abc import Iterable, Sequence
from typing import Any

from engine.contract.generate import ModelInfo
from engine.contract.kinds import KINDS
from engine.contract.operations import GENERATE, AnyOperation, Operation, operation_of
from engine.contract.request import AdaptableInfo, Info, InfoT
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import (
    CapacityError,
    InvalidParameter,
    ModelNotReady,
    ModelUnloading,
    UnknownModel,
)
from engine.worker.client import EngineClient
from server.served import SERVED


def find_model(engine: EngineClient, name: str | None) -> ModelInfo:
    """The ready text model with this id. Without an id, the only text model, if one is served.

    Raises:
        InvalidParameter: no id was given and several models are served, or it is of another kind.
        UnknownModel: no such model is served; names those that are.
        ModelNotReady: it is loading, restarting or failed.
        ModelUnloading: it is being unloaded.
    """
    return find_offering(engine, GENERATE, name)


def find_any_model(engine: EngineClient, name: str) -> Info:
    """The ready model with this id, whatever its kind.

    Raises:
        UnknownModel, ModelNotReady, ModelUnloading: as in `find_model`.
    """
    found = _named(engine.models(), name)
    if found is not None:
        return found
    for status in engine.statuses():
        if status.model == name:
            raise _not_ready(status)
    _check_not_awaited(engine, engine.statuses(), name)
    raise unknown_model(engine, name)


def each_name(infos: Iterable[InfoT]) -> list[InfoT]:
    """An info for each name that requests can use for these models."""
    named = [info.named(name) for info in infos for name in info.names]
    return [info for info in named if info is not None]


def config_of(engine: EngineClient, model: str) -> EngineConfig:
    """The configuration of a model that was found.

    Raises:
        UnknownModel: it has been unloaded since.
    """
    config = engine.config(model)
    if config is None:
        raise unknown_model(engine, model)
    return config


def names_made_for(engine: EngineClient, operation: AnyOperation) -> list[str]:
    """Ids of the models that are made for this operation, or that are loading and may be. Leaves
    out those that failed to load, are being unloaded, or joined a running server and have not
    served yet."""
    return [
        status.model
        for status in _made_for(engine, operation)
        if status.phase not in (Phase.FAILED, Phase.DRAINING) and not status.joining
    ]


def is_meant(engine: EngineClient, operation: AnyOperation, name: str | None) -> bool:
    """Whether the model of that id is made for this operation or, without an id, any model is."""
    mains = {status.model: _main(engine, status) for status in engine.statuses()}
    return operation in (mains.values() if not name else (mains.get(name),))


def served_names(engine: EngineClient, operation: AnyOperation) -> list[str]:
    """Ids as in `names_made_for` or, if there are none, of the ready models that offer the
    operation besides their own."""
    others = (info.model for info in engine.infos(operation))
    return names_made_for(engine, operation) or [*others]


def unknown_model(engine: EngineClient, name: str) -> UnknownModel:
    """The error for a model that is not configured. It names the models that serve now, of any
    kind; for an adapter that could not be loaded, it gives the reason."""
    infos = engine.models()
    for info in infos:
        if isinstance(info, AdaptableInfo) and name in info.failed_adapters:
            return UnknownModel(
                f"adapter {name!r} of model {info.model!r} is not served: "
                f"{info.failed_adapters[name]}",
                param="model",
            )
    names = [
        name if operation is GENERATE else f"{name} ({served.deed})"
        for operation, served in SERVED.items()
        for info in infos
        if operation_of(info) is operation
        for name in info.names
    ]
    advice = f"use one of: {', '.join(names)}" if names else "no model serves yet; see GET /ready"
    return UnknownModel(f"model {name!r} is not served; {advice}", param="model")


def find_offering(
    engine: EngineClient, operation: Operation[Any, Any, InfoT], name: str | None
) -> InfoT:
    """The ready model of that id that offers the operation, as `find_model` finds a text model."""
    served = served_names(engine, operation)
    if not name:
        # If the only model failed to load, its reason helps more than "none is served".
        meant = served or [status.model for status in _made_for(engine, operation)]
        if len(meant) != 1:
            raise InvalidParameter(f"model is required; {_use(served, operation)}", param="model")
        (name,) = meant
    found = _named(engine.infos(operation), name)
    if found is not None:
        return found
    for status in engine.statuses():
        if status.model != name:
            continue
        main = _main(engine, status)
        if main is not None and not _may_offer(engine, status, operation):
            does, routes = SERVED[main].deed, SERVED[main].routes
            raise InvalidParameter(
                f"model {name} {does}; send requests for it to {routes}; for this route "
                f"{_use(served, operation)}",
                param="model",
            )
        raise _not_ready(status)
    awaited = [one for one in engine.statuses() if _may_offer(engine, one, operation)]
    _check_not_awaited(engine, awaited, name)
    raise unknown_model(engine, name)


def _check_not_awaited(engine: EngineClient, statuses: Sequence[ModelStatus], adapter: str) -> None:
    """Raise if the name is that of an adapter whose model does not serve now.

    Raises:
        ModelNotReady, ModelUnloading: its model is not ready, or is being unloaded.
    """
    for status in statuses:
        config = engine.config(status.model)
        if status.phase is not Phase.READY and config is not None and adapter in config.adapters:
            raise _not_ready(status)


def _named(infos: Sequence[InfoT], name: str) -> InfoT | None:
    """The model that answers requests for `name`: a model's own id comes before other names."""
    found = [named for info in infos if (named := info.named(name)) is not None]
    return min(found, key=lambda info: info.model != name, default=None)


def _made_for(engine: EngineClient, operation: AnyOperation) -> list[ModelStatus]:
    """All configured models that are, or may be, made for this operation."""
    return [s for s in engine.statuses() if _main(engine, s) in (operation, None)]


def _may_offer(engine: EngineClient, status: ModelStatus, operation: AnyOperation) -> bool:
    """Whether a model that was not found among those that offer the operation may do so later: it
    is made for it or, while it does not serve, its kind may offer it besides."""
    if _main(engine, status) in (operation, None):
        return True
    serves = any(info.model == status.model for info in engine.models())
    return not serves and status.kind is not None and operation in KINDS[status.kind].operations


def _main(engine: EngineClient, status: ModelStatus) -> AnyOperation | None:
    """The operation that the model is made for, if it is known."""
    for info in engine.models():
        if info.model == status.model:
            return operation_of(info)
    return None if status.kind is None else KINDS[status.kind].main


def _use(names: Sequence[str], operation: AnyOperation) -> str:
    return f"use one of: {', '.join(names)}" if names else SERVED[operation].nothing_served


def _not_ready(status: ModelStatus) -> CapacityError:
    name = status.model
    if status.phase is Phase.DRAINING:
        return ModelUnloading(
            f"model {name} is being unloaded and takes no new requests; use another model",
            param="model",
        )
    if status.phase is Phase.FAILED:
        reason = f"model {name} failed to load: {status.news or 'see the server log'}"
    elif status.phase is Phase.SLEEPING:
        reason = f"model {name} sleeps; a request for what it makes wakes it"
    else:
        reason = f"model {name} is not ready ({status.phase.value}); try again later"
    return ModelNotReady(reason, param="model")
