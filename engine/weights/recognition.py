"""Recognises the kind of a checkpoint, and finds the further models that settings name. For
workers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.contract.kinds import KINDS, Kind, imported
from engine.contract.settings import EngineConfig
from engine.contract.worker_settings import WantedKind
from engine.errors import ModelLoadError
from engine.weights.source import Checkpoint


def kind_of_checkpoint(checkpoint: Checkpoint, wanted: WantedKind = "auto") -> Kind:
    """The kind of a checkpoint, given the wanted one. It may import the module that recognises a
    kind."""
    fitting = [kind for kind in KINDS.values() if checkpoint.layout in kind.layouts]
    for kind in fitting:
        if kind.recognise is not None and imported(kind.recognise)(checkpoint, wanted):
            return kind
    return next(kind for kind in fitting if kind.recognise is None)


def with_fetched(
    config: EngineConfig, kind: Kind, fetch: Callable[[str], Checkpoint]
) -> EngineConfig:
    """The configuration with further models replaced by their local paths.

    Raises:
        ModelLoadError: as in `further_model`.
    """
    named = {name: getattr(config, name) for name in kind.further_models}
    found: dict[str, Any] = {
        name: str(further_model(name, ref, kind, fetch).path.absolute())
        for name, ref in named.items()
        if ref is not None
    }
    return replace(config, **found)


def further_model(
    setting: str, ref: str, kind: Kind, fetch: Callable[[str], Checkpoint]
) -> Checkpoint:
    """Find the further model that a setting names; it must be of the given kind.

    Raises:
        ModelLoadError: it cannot be fetched or is of another kind; the message begins with the
            setting.
    """
    try:
        found = fetch(ref)
    except ModelLoadError as error:
        blaming = type(error)(f"{setting} cannot be used: {error.message}", param=setting)
        blaming.hint = error.hint
        raise blaming from error
    if found.layout not in kind.layouts:
        raise ModelLoadError(
            f"{setting} is {found.name!r}, which is not a {kind.name} model; name a {kind.name} "
            "model",
            param=setting,
        )
    return found
