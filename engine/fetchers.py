"""Functions that find a model's and an adapter's files, fetching them if needed. Imports no
torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.adapter_source import resolve_adapter
from engine.weights.source import Checkpoint, Progress, resolve_source


class Fetchers(NamedTuple):
    """Functions from a reference to its files, with cache folder and progress callback given."""

    model: Callable[[str], Checkpoint]
    """`engine.weights.source.resolve_source` of a model."""
    adapter: Callable[[str], str]
    """`engine.adapter_source.resolve_adapter` of an adapter."""

    @classmethod
    def to(cls, cache_dir: Path, on_progress: Progress, *, offline: bool) -> "Fetchers":
        """Make both functions; the arguments are those of `resolve_source`."""
        return cls(
            partial(resolve_source, cache_dir=cache_dir, offline=offline, on_progress=on_progress),
            partial(resolve_adapter, cache_dir=cache_dir, offline=offline, on_progress=on_progress),
        )
