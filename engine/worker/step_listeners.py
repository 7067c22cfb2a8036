"""Passes the steps that engines report on to listeners."""

from collections.abc import Callable
from typing import Any

from engine.contract.operations import AnyOperation, Operation
from engine.contract.request import Stats, StatsT


class StepListeners:
    """The listeners of one client. Used on the event loop only."""

    def __init__(self) -> None:
        self._listeners: list[tuple[AnyOperation, Callable[[str, Any, str], None]]] = []

    def add(
        self, operation: Operation[Any, StatsT, Any], listener: Callable[[str, StatsT, str], None]
    ) -> None:
        """Call `listener` with (model, stats, worker) after every step of a model that offers the
        operation. Each worker has totals of its own."""
        self._listeners.append((operation, listener))

    def tell(self, model: str, stats: Stats, worker: str = "") -> None:
        """Report a step of that model, or of one of its workers, to its listeners."""
        for operation, listener in self._listeners:
            heard = operation.stats_among(stats)
            if heard is not None:
                listener(model, heard, worker)
