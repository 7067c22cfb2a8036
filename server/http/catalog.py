"""Which served model a request means, and how answers name it."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from engine.client import EngineClient
from engine.errors import InvalidParameter, ModelNotReady, UnknownModel
from engine.image_types import ImageModelInfo
from engine.types import ModelInfo, ModelKind, ModelStatus, Phase
from engine.version import __version__

_OTHER_ROUTES = {
    ModelKind.TEXT: "draws images; ask it with /v1/images/generations or /v1/images/edits",
    ModelKind.IMAGE: "writes text; ask it with /v1/chat/completions or /v1/completions",
}
_NOTHING_SERVED = {
    ModelKind.TEXT: "no text model is served here",
    ModelKind.IMAGE: "no image model is served here; start the server with one, such as "
    "--model HUB_ID_OR_FOLDER",
}

Info = TypeVar("Info", ModelInfo, ImageModelInfo)


def find_model(engine: EngineClient, name: str | None) -> ModelInfo:
    """The ready text model of that id. Without an id it is the one text model, if only one is
    served.

    Raises:
        InvalidParameter: no id was given and several models are served, or it is an image model.
        UnknownModel: no such model is served; names those that are.
        ModelNotReady: it is loading, restarting or failed.
    """
    return _find(engine, engine.models(), name, ModelKind.TEXT)


def find_image_model(engine: EngineClient, name: str | None) -> ImageModelInfo:
    """The ready image model of that id, as `find_model` finds a text model."""
    return _find(engine, engine.image_models(), name, ModelKind.IMAGE)


def find_any_model(engine: EngineClient, name: str) -> ModelInfo | ImageModelInfo:
    """The ready model of that id, whatever its kind.

    Raises:
        UnknownModel, ModelNotReady: as in `find_model`.
    """
    for info in engine.image_models():
        if info.model == name:
            return info
    return find_model(engine, name)


def served_names(engine: EngineClient, kind: ModelKind) -> list[str]:
    """Ids of the models of that kind, and of those whose kind is not known yet, but for those that
    could not be loaded."""
    return [s.model for s in _of_kind(engine, kind) if s.phase is not Phase.FAILED]


def unknown_model(engine: EngineClient, name: str) -> UnknownModel:
    """What to say of a model that is not configured: names those that serve now, of any kind."""
    texts = [info.model for info in engine.models()]
    images = [f"{info.model} (draws images)" for info in engine.image_models()]
    names = ", ".join([*texts, *images])
    advice = f"use one of: {names}" if names else "no model serves yet; see GET /ready"
    return UnknownModel(f"model {name!r} is not served; {advice}", param="model")


def _find(engine: EngineClient, ready: Sequence[Info], name: str | None, kind: ModelKind) -> Info:
    served = served_names(engine, kind)
    if not name:
        # Where all have failed, the reason of the only one helps more than that none is served.
        meant = served or [status.model for status in _of_kind(engine, kind)]
        if len(meant) != 1:
            raise InvalidParameter(f"model is required; {_use(served, kind)}", param="model")
        (name,) = meant
    for info in ready:
        if info.model == name:
            return info
    for status in engine.statuses():
        if status.model != name:
            continue
        if _kind(engine, status) not in (kind, None):
            raise InvalidParameter(
                f"model {name} {_OTHER_ROUTES[kind]}; {_use(served, kind)}", param="model"
            )
        raise ModelNotReady(_not_ready(status), param="model")
    raise unknown_model(engine, name)


def _of_kind(engine: EngineClient, kind: ModelKind) -> list[ModelStatus]:
    """All configured models that are of that kind, or may be."""
    return [s for s in engine.statuses() if _kind(engine, s) in (kind, None)]


def _kind(engine: EngineClient, status: ModelStatus) -> ModelKind | None:
    """A model that serves shows its kind by where it is listed."""
    if any(info.model == status.model for info in engine.models()):
        return ModelKind.TEXT
    if any(info.model == status.model for info in engine.image_models()):
        return ModelKind.IMAGE
    return status.kind


@lru_cache(maxsize=256)
def system_fingerprint(model: str, config_hash: str) -> str:
    """Changes with the server's version, the model and the engine's configuration."""
    text = f"{__version__}|{model}|{config_hash}"
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _use(names: Sequence[str], kind: ModelKind) -> str:
    return f"use one of: {', '.join(names)}" if names else _NOTHING_SERVED[kind]


def _not_ready(status: ModelStatus) -> str:
    if status.phase is Phase.FAILED:
        return f"model {status.model} failed to load: {status.detail or 'see the server log'}"
    return f"model {status.model} is not ready ({status.phase.value}); try again later"
