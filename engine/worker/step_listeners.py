"""Passes the steps that engines report on to listeners."""

from collections.abc import Callable
from typing import Any

from engine.contract.kinds import AnyKind, Kind, kind_of
from engine.contract.request import Stats, StatsT


class StepListeners:
    """The listeners of one client. Used on the event loop only."""

    def __init__(self) -> None:
        self._listeners: list[tuple[AnyKind, Callable[[str, Any], None]]] = []

    def add(self, kind: Kind[Any, StatsT, Any], listener: Callable[[str, StatsT], None]) -> None:
        """Call `listener` with (model, stats) after every step of a model of that kind."""
        self._listeners.append((kind, listener))

    def tell(self, model: str, stats: Stats) -> None:
        """Report a step of that model to its listeners."""
        kind = kind_of(stats)
        for heard, listener in self._listeners:
            if heard is kind:
                listener(model, stats)
