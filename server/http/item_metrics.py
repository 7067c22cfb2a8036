"""Prometheus metrics of an operation whose requests hold items, each answered whole by one event.

All such operations are measured alike. What is particular to one follows from the fields of its
statistics, which its `ItemNames` lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from engine.contract.operations import AnyOperation
from engine.contract.request import Event
from engine.worker.client import EngineClient
from server.http.model_metrics import Clock, MetricRow, OperationMetrics, Outcome, Series, fields

_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0),
)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemNames:
    """The names and sources of an operation's metrics."""

    subsystem: str
    """Part of all metric names: `tandem_<subsystem>_…`."""
    items: str
    """Plural name of the requested items."""
    totals: Mapping[str, str]
    """Statistics fields that are sums since the worker started → help text. A counter has the
    field's name without `num_`."""
    step_sizes: Mapping[str, str]
    """Statistics fields with the size of the newest step → help text; each becomes a histogram of
    that name."""

    def rows(self) -> list[MetricRow]:
        """The metrics."""
        return [
            outcomes(self.items),
            MetricRow("request_latency_seconds", "Arrival to end of a request.", _BUCKETS_S),
            MetricRow("queue_seconds", "Arrival of a request to its first step.", _BUCKETS_S),
            MetricRow("step_seconds", "Time of a step.", _BUCKETS_S, read=fields("step_time_s")),
            *(
                MetricRow(field, text, _SIZE_BUCKETS, read=fields(field))
                for field, text in self.step_sizes.items()
            ),
            *(
                MetricRow(field.removeprefix("num_"), text, read=fields(field))
                for field, text in ({"num_steps": "Steps."} | {**self.totals}).items()
            ),
        ]


def outcomes(items: str) -> MetricRow:
    """The row that counts how items end; `items` is their plural name."""
    text = f"{items.capitalize()} ended, by outcome."
    return MetricRow(items, text, label="outcome", values=tuple(Outcome))


class ItemMeter:
    """Measures a request from its arrival, and counts how its items ended."""

    def __init__(self, series: Series, items: str, clock: Clock) -> None:
        self._series = series
        self._items = items
        self._clock = clock
        self._started_s = clock()
        self._closed = False

    def on_event(self, event: Event) -> None:
        """Record the time in the queue."""
        if event.queue_time_s is not None:
            self._series.of("queue_seconds").observe(event.queue_time_s)

    def complete(self, outcome: Outcome, count: int = 1) -> None:
        """Count items that ended this way."""
        self._series.of(self._items, outcome).inc(count)

    def close(self) -> None:
        """End the measurement. Only the first call counts."""
        if not self._closed:
            self._closed = True
            self._series.of("request_latency_seconds").observe(self._clock() - self._started_s)


class ItemMetrics(OperationMetrics):
    """The metrics of such an operation in one app. Event loop only."""

    def __init__(
        self,
        operation: AnyOperation,
        names: ItemNames,
        registry: CollectorRegistry,
        engine: EngineClient,
        clock: Clock,
    ) -> None:
        what = names.items.capitalize()
        gauges = f"{what} in the newest step.", f"{what} waiting for a step."
        super().__init__(operation, names.rows(), registry, engine, clock, names.subsystem, gauges)
        self._items = names.items

    def meter(self, model: str) -> ItemMeter:
        """Start measuring a request. `model` is a served model's id, never text from a client."""
        return ItemMeter(self._of(model), self._items, self._clock)
