"""Finds the served model that a request means."""

from collections.abc import Sequence
from typing import Any

from engine.contract.draw import ImageModelInfo
from engine.contract.generate import ModelInfo
from engine.contract.kinds import IMAGE, KINDS, TEXT, AnyKind, Kind
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
from server.kinds import SERVED


def find_model(engine: EngineClient, name: str | None) -> ModelInfo:
    """The ready text model with this id. Without an id, the only text model, if one is served.

    Raises:
        InvalidParameter: no id was given and several models are served, or it is of another kind.
        UnknownModel: no such model is served; names those that are.
        ModelNotReady: it is loading, restarting or failed.
        ModelUnloading: it is being unloaded.
    """
    return find_of_kind(engine, TEXT, name)


def find_default_model(engine: EngineClient, name: str | None) -> ModelInfo:
    """Like `find_model`, but without an id the first text model: for requests where any will do.

    Raises:
        InvalidParameter, UnknownModel, ModelNotReady, ModelUnloading: as in `find_model`.
    """
    infos = engine.infos(TEXT)
    return find_model(engine, name or (infos[0].model if infos else None))


def find_image_model(engine: EngineClient, name: str | None) -> ImageModelInfo:
    """The ready image model with this id, found as `find_model` finds a text model."""
    return find_of_kind(engine, IMAGE, name)


def find_any_model(engine: EngineClient, name: str) -> Info:
    """The ready model with this id, whatever its kind.

    Raises:
        UnknownModel, ModelNotReady, ModelUnloading: as in `find_model`.
    """
    infos: list[Info] = [info for kind in KINDS.values() for info in engine.infos(kind)]
    found = _named(infos, name)
    if found is not None:
        return found
    for status in engine.statuses():
        if status.model == name:
            raise _not_ready(status)
    _check_not_awaited(engine, engine.statuses(), name)
    raise unknown_model(engine, name)


def config_of(engine: EngineClient, model: str) -> EngineConfig:
    """The configuration of a model that was found.

    Raises:
        UnknownModel: it has been unloaded since.
    """
    config = engine.config(model)
    if config is None:
        raise unknown_model(engine, model)
    return config


def served_names(engine: EngineClient, kind: AnyKind) -> list[str]:
    """Ids of the models of this kind, or of a kind that is not known yet. Leaves out those that
    failed to load, are being unloaded, or joined a running server and have not served yet."""
    return [
        status.model
        for status in _of_kind(engine, kind)
        if status.phase not in (Phase.FAILED, Phase.DRAINING) and not status.joining
    ]


def unknown_model(engine: EngineClient, name: str) -> UnknownModel:
    """The error for a model that is not configured. It names the models that serve now, of any
    kind; for an adapter that could not be loaded, it gives the reason."""
    infos = [info for kind in KINDS.values() for info in engine.infos(kind)]
    for info in infos:
        if isinstance(info, AdaptableInfo) and name in info.failed_adapters:
            return UnknownModel(
                f"adapter {name!r} of model {info.model!r} is not served: "
                f"{info.failed_adapters[name]}",
                param="model",
            )
    names = [
        name if kind is TEXT else f"{name} ({served.deed})"
        for kind, served in SERVED.items()
        for info in engine.infos(kind)
        for name in info.names
    ]
    advice = f"use one of: {', '.join(names)}" if names else "no model serves yet; see GET /ready"
    return UnknownModel(f"model {name!r} is not served; {advice}", param="model")


def find_of_kind(engine: EngineClient, kind: Kind[Any, Any, InfoT], name: str | None) -> InfoT:
    """The ready model of that kind and id, as `find_model` finds a text model."""
    served = served_names(engine, kind)
    if not name:
        # If the only model failed to load, its reason helps more than "none is served".
        meant = served or [status.model for status in _of_kind(engine, kind)]
        if len(meant) != 1:
            raise InvalidParameter(f"model is required; {_use(served, kind)}", param="model")
        (name,) = meant
    found = _named(engine.infos(kind), name)
    if found is not None:
        return found
    for status in engine.statuses():
        if status.model != name:
            continue
        own = _kind(engine, status)
        if own is not None and own is not kind:
            does, routes = SERVED[own].deed, SERVED[own].routes
            raise InvalidParameter(
                f"model {name} {does}; send requests for it to {routes}; for this route "
                f"{_use(served, kind)}",
                param="model",
            )
        raise _not_ready(status)
    _check_not_awaited(engine, _of_kind(engine, kind), name)
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


def _of_kind(engine: EngineClient, kind: AnyKind) -> list[ModelStatus]:
    """All configured models of this kind, or of a kind that is not known yet."""
    return [s for s in engine.statuses() if _kind(engine, s) in (kind, None)]


def _kind(engine: EngineClient, status: ModelStatus) -> AnyKind | None:
    """The model's kind, if it is known: a model that serves shows it by where it is listed."""
    for kind in KINDS.values():
        if any(info.model == status.model for info in engine.infos(kind)):
            return kind
    return None if status.kind is None else KINDS[status.kind]


def _use(names: Sequence[str], kind: AnyKind) -> str:
    return f"use one of: {', '.join(names)}" if names else SERVED[kind].nothing_served


def _not_ready(status: ModelStatus) -> CapacityError:
    name = status.model
    if status.phase is Phase.DRAINING:
        return ModelUnloading(
            f"model {name} is being unloaded and takes no new requests; use another model",
            param="model",
        )
    if status.phase is Phase.FAILED:
        reason = f"model {name} failed to load: {status.news or 'see the server log'}"
    else:
        reason = f"model {name} is not ready ({status.phase.value}); try again later"
    return ModelNotReady(reason, param="model")
