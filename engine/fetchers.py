"""From what a model's order names to files of this machine. No torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.adapter_source import resolve_adapter
from engine.weights.source import Checkpoint, Progress, resolve_source


class Fetchers(NamedTuple):
    """Told where to, and whom to tell of it. Each takes a reference."""

    model: Callable[[str], Checkpoint]
    """`engine.weights.source.resolve_source`."""
    adapter: Callable[[str], str]
    """`engine.adapter_source.resolve_adapter`."""

    @classmethod
    def to(cls, cache_dir: Path, on_progress: Progress, *, offline: bool) -> "Fetchers":
        """As in `resolve_source`."""
        return cls(
            partial(resolve_source, cache_dir=cache_dir, offline=offline, on_progress=on_progress),
            partial(resolve_adapter, cache_dir=cache_dir, offline=offline, on_progress=on_progress),
        )
