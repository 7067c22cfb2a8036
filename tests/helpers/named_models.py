"""Models that have a name of their own, fetched the first time."""

from pathlib import Path

from engine.weights.source import Checkpoint, resolve_source


def named_model(name: str) -> Checkpoint:
    """Return a model from the user's cache."""
    cache = Path("~/.cache/tandem").expanduser()
    return resolve_source(name, cache_dir=cache, on_progress=lambda *progress: None)
