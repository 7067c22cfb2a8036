"""Prometheus metrics of a kind whose requests hold items, each answered whole by one event.

All such kinds are measured alike. What is particular to a kind follows from the fields of its
statistics, which its `ItemNames` lists. Prometheus computes rates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from engine.contract.operations import AnyOperation
from engine.contract.request import Event, Stats
from engine.worker.client import EngineClient
from server.http.model_metrics import (
    MetricFactory,
    OperationMetrics,
    Outcome,
    OutcomeMeter,
    QueueGauges,
    WorkerTotals,
)

_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0),
)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemNames:
    """The names and sources of a kind's metrics."""

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
    step_time: str
    """Statistics field with the seconds that the newest step took."""


class ItemMeter(OutcomeMeter):
    """Measures one request; made by `ItemMetrics.meter`."""

    def __init__(self, model: "_ModelMetrics", clock: Callable[[], float]) -> None:
        super().__init__(model.items, model.latency, clock)
        self._model = model

    def on_event(self, event: Event) -> None:
        """Record the time in the queue."""
        if event.queue_time_s is not None:
            self._model.queue_time.observe(event.queue_time_s)


class ItemMetrics(OperationMetrics["_ModelMetrics"]):
    """Metrics of one kind of model in one app. Event loop only."""

    def __init__(
        self,
        kind: AnyOperation,
        names: ItemNames,
        registry: CollectorRegistry,
        engine: EngineClient,
        *,
        clock: Callable[[], float],
    ) -> None:
        factory = MetricFactory(registry, names.subsystem)
        metrics = _Metrics(factory, names)
        super().__init__(factory, partial(_ModelMetrics, metrics=metrics), clock)
        registry.register(
            QueueGauges(
                engine,
                kind,
                names.subsystem,
                running=f"{names.items.capitalize()} in the newest step.",
                waiting=f"{names.items.capitalize()} waiting for a step.",
            )
        )
        engine.steps.add(kind, self.on_step)

    def meter(self, model: str) -> ItemMeter:
        """Start measuring a request. `model` is a served model's id, never text from a client."""
        return ItemMeter(self._of(model), self._clock)


class _Metrics:
    """A kind's metrics, before a model's name is filled in."""

    def __init__(self, create: MetricFactory, names: ItemNames) -> None:
        what = names.items.capitalize()
        self.names = names
        self.items = create.counter(names.items, f"{what} ended, by outcome.", "outcome")
        self.latency = create.histogram(
            "request_latency_seconds", "Arrival to end of a request.", _BUCKETS_S
        )
        self.queue_time = create.histogram(
            "queue_seconds", "Arrival of a request to its first step.", _BUCKETS_S
        )
        self.step_time = create.histogram("step_seconds", "Time of a step.", _BUCKETS_S)
        self.step_sizes = [
            create.histogram(field, text, _SIZE_BUCKETS) for field, text in names.step_sizes.items()
        ]
        self.totals = [
            create.counter("steps", "Steps."),
            *(
                create.counter(field.removeprefix("num_"), text)
                for field, text in names.totals.items()
            ),
        ]


class _ModelMetrics:
    """The metrics of one model, looked up once because `labels()` is not free."""

    def __init__(self, name: str, metrics: _Metrics) -> None:
        self._names = metrics.names
        self.items = {outcome: metrics.items.labels(name, outcome) for outcome in Outcome}
        self.latency = metrics.latency.labels(name)
        self.queue_time = metrics.queue_time.labels(name)
        self._step_time = metrics.step_time.labels(name)
        self._step_sizes = [histogram.labels(name) for histogram in metrics.step_sizes]
        self._totals = WorkerTotals([counter.labels(name) for counter in metrics.totals])

    def on_step(self, stats: Stats) -> None:
        names = self._names
        num_steps, *_ = self._totals.take((stats.num_steps, *_values(stats, [*names.totals])))
        if not num_steps:
            return
        for histogram, size in zip(
            self._step_sizes, _values(stats, [*names.step_sizes]), strict=True
        ):
            histogram.observe(size)
        self._step_time.observe(getattr(stats, names.step_time))


def _values(stats: Any, fields: Sequence[str]) -> list[float]:
    return [getattr(stats, field) for field in fields]
