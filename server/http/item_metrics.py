"""Prometheus metrics of an operation whose requests hold items, each answered whole by one event.

All such operations are measured alike. What is particular to one follows from the fields of its
statistics, which its `ItemNames` lists.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from engine.contract.operations import AnyOperation
from engine.contract.phase import Phase
from engine.contract.request import Event, Request
from engine.worker.client import EngineClient
from server.http.model_metrics import Clock, MetricRow, OperationMetrics, Outcome, Series, fields
from server.http.request_trace import current_trace
from server.http.usage import Used

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
    """Measures a request from its arrival, and counts how its items ended.

    Attributes:
        used: what the request has used so far.
    """

    def __init__(self, series: Series, operation: AnyOperation, items: str, clock: Clock) -> None:
        self.used = Used()
        self._trace = current_trace()
        self._operation = operation
        self._arrival_s = self._submitted_s = time.time()
        self._phases: list[Phase] = []
        self._begin_s: float | None = None
        self._series = series
        self._items = items
        self._clock = clock
        self._started_s = clock()
        self._closed = False

    def submit(self, request: Request[Any]) -> None:
        """Note that the request goes to the engine now."""
        self.used.input_tokens = request.num_input_tokens
        self._submitted_s = time.time()
        prepared_s = self._submitted_s - self._arrival_s
        self._phases.append(Phase("prepare", self._arrival_s, prepared_s))

    def on_event(self, event: Event) -> None:
        """Record the time in the queue."""
        if event.queue_time_s is not None:
            self._series.of("queue_seconds").observe(event.queue_time_s)
            self._note_queue(event, event.queue_time_s)

    def complete(self, outcome: Outcome, count: int = 1) -> None:
        """Count items that ended this way."""
        self._series.of(self._items, outcome).inc(count)
        if outcome is Outcome.COMPLETED:
            self.used.num_results += count

    def close(self) -> None:
        """End the measurement. Only the first call counts."""
        if not self._closed:
            self._closed = True
            total_s, exemplar = self._clock() - self._started_s, self._trace.exemplar
            self._series.of("request_latency_seconds").observe(total_s, exemplar)
            self._trace_end()

    def _note_queue(self, event: Event, seconds: float) -> None:
        self._trace.note_queue(seconds)
        if self._begin_s is None:
            self._begin_s = min(self._submitted_s + seconds, time.time())
            queue_s = self._begin_s - self._submitted_s
            self._phases.append(Phase("queue", self._submitted_s, queue_s, parts=event.phases))

    def _trace_end(self) -> None:
        """Tell the request's trace what was used, and where the time went."""
        end_s, model = time.time(), self._series.model
        if self._begin_s is None:
            self._phases.append(Phase("queue", self._submitted_s, end_s - self._submitted_s))
        else:
            self._phases += self._work(self._begin_s, end_s)
        name, parts = f"{self._operation.name} {model}", tuple(self._phases)
        self._trace.add(Phase(name, self._arrival_s, end_s - self._arrival_s, parts=parts))
        self._trace.use(model, self._operation.name, self.used)

    def _work(self, start_s: float, end_s: float) -> list[Phase]:
        """The phases after the queue."""
        return [Phase("compute", start_s, end_s - start_s, self.used.input_tokens)]


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
        return ItemMeter(self._of(model), self._operation, self._items, self._clock)
