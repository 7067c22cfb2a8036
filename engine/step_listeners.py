"""Who hears of the steps that engines report."""

from collections.abc import Callable
from typing import Any

from engine.kinds import AnyKind, Kind, kind_of
from engine.types import Stats, StatsT


class StepListeners:
    """Those of one client. Event loop only."""

    def __init__(self) -> None:
        self._listeners: list[tuple[AnyKind, Callable[[str, Any], None]]] = []

    def add(self, kind: Kind[Any, StatsT, Any], listener: Callable[[str, StatsT], None]) -> None:
        """Have `listener` called with (model, stats) of every step of a model of that kind."""
        self._listeners.append((kind, listener))

    def tell(self, model: str, stats: Stats) -> None:
        """A step of that model was reported."""
        kind = kind_of(stats)
        for heard, listener in self._listeners:
            if heard is kind:
                listener(model, stats)
