"""Where a LoRA adapter's files are: a folder, a file, or a repository of the hub. No torch."""

import os
from pathlib import Path

from engine.weights.hub import fetch_hub_adapter
from engine.weights.source import Progress, hub_id_of


def needs_hub(ref: str) -> bool:
    """Whether it is a hub id, and no folder or file of this machine."""
    return hub_id_of(ref) is not None and not os.path.exists(os.path.expanduser(ref))


def resolve_adapter(
    ref: str, *, cache_dir: Path, on_progress: Progress, offline: bool = False
) -> str:
    """The folder or file of the LoRA adapter that `ref` names, fetched if it is a hub id and not
    here yet. What is neither there nor a hub id is returned as it is: who reads it says so.

    Args:
        ref: a folder, a file, or a hub id: `org/name`, `org/name@revision`,
            `org/name:file.safetensors`. A folder wins over a hub id.
        cache_dir, offline: as in `engine.weights.source.resolve_source`.

    Raises:
        ModelNotFound, ModelLoadError: as there.
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
