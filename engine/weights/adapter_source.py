"""Finds a LoRA adapter's files in a folder, a file or a hub repository. Imports no torch."""

import os
from collections.abc import Callable
from pathlib import Path

import structlog

from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError
from engine.weights.hub import fetch_hub_adapter
from engine.weights.source import Progress, hub_id_of

log = structlog.get_logger(__name__)


def needs_hub(ref: str) -> bool:
    """Whether `ref` is a hub id and not a folder or file of this machine."""
    return hub_id_of(ref) is not None and not os.path.exists(os.path.expanduser(ref))


def resolve_adapter(
    ref: str, *, cache_dir: Path, on_progress: Progress, offline: bool = False
) -> str:
    """The folder or file of the LoRA adapter that `ref` names. A hub id that is not here yet is
    fetched. What is neither a file nor a hub id is returned unchanged: its reader reports the
    error.

    Args:
        ref: a folder, a file, or a hub id: `org/name`, `org/name@revision`,
            `org/name:file.safetensors`. A folder wins over a hub id.
        cache_dir, offline: as in `engine.weights.source.resolve_source`.

    Raises:
        ModelNotFound, ModelLoadError: as in `resolve_source`.
    """
    hub_id = hub_id_of(ref)
    if hub_id is None or not needs_hub(ref):
        return ref
    path = fetch_hub_adapter(
        hub_id["repo"],
        revision=hub_id["revision"],
        filename=hub_id["filename"],
        cache_dir=cache_dir,
        on_progress=on_progress,
        offline=offline,
    )
    return str(path)


def with_adapters_here(
    config: EngineConfig, fetch: Callable[[str], str]
) -> tuple[EngineConfig, dict[str, str]]:
    """A model's settings with its adapters' hub ids replaced by local folders, and the reasons for
    the adapters that cannot be fetched.

    Args:
        fetch: `resolve_adapter` with its other arguments given.
    """
    if not any(map(needs_hub, config.adapters.values())):
        return config, {}
    found: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, ref in config.adapters.items():
        try:
            found[name] = fetch(ref)
        except ModelLoadError as error:  # the model is served without this adapter
            failed[name] = error.message
            log.error("adapter failed to load", adapter=name, ref=ref, reason=error.message)
    return config.with_adapters(found), failed
