"""Which served model a request means, and how answers name it."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from engine.client import EngineClient
from engine.errors import InvalidParameter, ModelNotReady, UnknownModel
from engine.types import ModelInfo, ModelStatus, Phase
from engine.version import __version__


def find_model(engine: EngineClient, name: str | None) -> ModelInfo:
    """The ready model of that id. Without an id it is the one model, if only one is served.

    Raises:
        InvalidParameter: no id was given and several models are served.
        UnknownModel: no such model is served; names those that are.
        ModelNotReady: it is loading, restarting or failed.
    """
    statuses = engine.statuses()
    if not name:
        if len(statuses) != 1:
            raise InvalidParameter(f"model is required; {_served(statuses)}", param="model")
        name = statuses[0].model
    for info in engine.models():
        if info.model == name:
            return info
    for status in statuses:
        if status.model == name:
            raise ModelNotReady(_not_ready(status), param="model")
    raise UnknownModel(f"model {name!r} is not served; {_served(statuses)}", param="model")


@lru_cache(maxsize=256)
def system_fingerprint(info_model: str, config_hash: str) -> str:
    """Changes with the server's version, the model and the engine's configuration."""
    text = f"{__version__}|{info_model}|{config_hash}"
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _served(statuses: Sequence[ModelStatus]) -> str:
    return f"use one of: {', '.join(status.model for status in statuses)}"


def _not_ready(status: ModelStatus) -> str:
    if status.phase is Phase.FAILED:
        return f"model {status.model} failed to load: {status.detail or 'see the server log'}"
    return f"model {status.model} is not ready ({status.phase.value}); try again later"
