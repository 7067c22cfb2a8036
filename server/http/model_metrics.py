"""An operation's Prometheus metrics: their description, and the numbers of each model and adapter.

An operation lists its metrics as rows. What is particular to it is on top (`server/metrics.py`).
Prometheus computes rates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.contract.operations import Operation
from engine.errors import RequestAborted, RequestError
from engine.worker.client import EngineClient

MODEL = "model_name"
"""The first label of each metric, as in vLLM."""
ADAPTER = "lora_name"
"""The label of adapters in metrics."""

Clock = Callable[[], float]
Read = Callable[[Any], Iterable[float | None]]


def fields(*names: str) -> Read:
    """A function that returns these fields of a step's report."""
    return lambda stats: [getattr(stats, name) for name in names]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of every model: a counter, or a histogram if it has buckets.

    Attributes:
        label: its label beside the model's name, if it has one.
        values: the label's values that are shown from the start.
        read: the numbers of a step's report, one for each value. A counter follows sums that
            restart with the worker. A histogram observes the newest step, except where a number is
            None.
    """

    name: str
    text: str
    buckets: Sequence[float] = ()
    label: str = ""
    values: Sequence[str] = ()
    read: Read | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return (MODEL, self.label) if self.label else (MODEL,)

    def create(self, registry: CollectorRegistry, subsystem: str) -> Counter | Histogram:
        """Create the metric; `subsystem` is the operation's part of its name."""
        names: dict[str, Any] = {"namespace": "tandem", "subsystem": subsystem}
        if self.buckets:
            names["buckets"] = self.buckets
        create = Histogram if self.buckets else Counter
        return create(self.name, self.text, self.labels, registry=registry, **names)


class Outcome(StrEnum):
    """How an image, or another requested item, ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @classmethod
    def of_unfinished(cls, error: BaseException) -> "Outcome | None":
        """The outcome to count for items whose request ended with this error. None: count nothing,
        because a refused request asked for nothing."""
        if isinstance(error, RequestError):
            return None
        failed = isinstance(error, Exception) and not isinstance(error, RequestAborted)
        return cls.FAILED if failed else cls.CANCELLED


Metrics = Sequence[tuple[MetricRow, Counter | Histogram]]


class Series:
    """The numbers of one model, or of an adapter in addition to those of its model. They are looked
    up once, because `labels()` is not free.

    Args:
        names: the model, and the adapter.
    """

    def __init__(self, metrics: Metrics, *names: str) -> None:
        self._names = names
        self._metrics = {row.name: metric for row, metric in metrics}
        self._found: dict[tuple[str, ...], Any] = {}
        self._sums: list[tuple[Read, list[Any]]] = []
        self._of_step: list[tuple[Read, list[Any]]] = []
        for row, _ in metrics:
            needs_value = len(row.labels) > len(names)
            values = [(value,) for value in row.values] if needs_value else [()]
            shown = [self.of(row.name, *value) for value in values]
            if row.read is not None:
                (self._of_step if row.buckets else self._sums).append((row.read, shown))
        self._before: dict[str, list[float]] = {}
        """The sums that each of the model's workers has last reported."""

    @property
    def model(self) -> str:
        return self._names[0]

    def of(self, metric: str, *value: str) -> Any:
        """The counter or histogram of that name and value of its label."""
        key = metric, *value
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._metrics[metric].labels(*self._names, *value)
        return found

    def on_step(self, stats: Any, worker: str) -> None:
        """Record a step's report."""
        sums = [stats.num_steps, *chain.from_iterable(read(stats) for read, _ in self._sums)]
        before = self._before.get(worker, [0.0] * len(sums))
        self._before[worker] = sums
        if any(now < then for now, then in zip(sums, before, strict=True)):
            before = [0.0] * len(sums)  # a new worker counts from zero
        num_steps, *added = (now - then for now, then in zip(sums, before, strict=True))
        counters = chain.from_iterable(counters for _, counters in self._sums)
        for counter, number in zip(counters, added, strict=True):
            if number:
                counter.inc(number)
        if not num_steps:
            return
        for read, histograms in self._of_step:
            for histogram, number in zip(histograms, read(stats), strict=True):
                if number is not None:
                    histogram.observe(number)


class QueueGauges(Collector):
    """Gauges of the running and waiting items of a kind's models, read from the engine when
    Prometheus asks.

    Args:
        subsystem: the kind's part of the names.
        running, waiting: help texts that say what is counted.
    """

    def __init__(
        self,
        engine: EngineClient,
        kind: Operation[Any, Any, Any],
        subsystem: str,
        running: str,
        waiting: str,
    ) -> None:
        self._engine = engine
        self._kind = kind
        self._subsystem = subsystem
        self._texts = (running, waiting)

    def describe(self) -> Iterator[Metric]:
        return iter(self._gauges())

    def collect(self) -> Iterator[Metric]:
        gauges = running, waiting = self._gauges()
        made_for = self._engine.made_for(self._kind)
        for info in self._engine.infos(self._kind):
            stats = self._kind.stats_among(self._engine.stats(info.model))
            if stats is None and info not in made_for:
                continue  # nobody has asked it for that yet
            stats = stats or self._kind.stats()
            running.add_metric([info.model], stats.num_running)
            waiting.add_metric([info.model], stats.num_waiting)
        return iter(gauges)

    def _gauges(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        running, waiting = self._texts
        return self._gauge("num_running", running), self._gauge("num_waiting", waiting)

    def _gauge(self, name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"tandem_{self._subsystem}_{name}", text, labels=[MODEL])


class OperationMetrics:
    """The metrics of one operation in one app. Event loop only.

    Args:
        subsystem: the operation's part of the names.
        gauges: help texts of the gauges of running and of waiting items, if these are shown.
    """

    def __init__(
        self,
        operation: Operation[Any, Any, Any],
        rows: Iterable[MetricRow],
        registry: CollectorRegistry,
        engine: EngineClient,
        clock: Clock,
        subsystem: str = "",
        gauges: tuple[str, str] | None = None,
    ) -> None:
        self._operation = operation
        self._engine = engine
        self._clock = clock
        self._metrics = [(row, row.create(registry, subsystem)) for row in rows]
        self._found: dict[tuple[str, ...], Series] = {}
        if gauges is not None:
            registry.register(QueueGauges(engine, operation, subsystem, *gauges))
        engine.steps.add(operation, self.on_step)

    def on_step(self, model: str, stats: Any, worker: str = "") -> None:
        """Record a step's report, of the model's only worker or of one of several."""
        self._of(model).on_step(stats, worker)

    def forget(self, model: str, adapter: str | None = None) -> None:
        """Remove the numbers of a model that is gone, or only those of an adapter. A meter that is
        still used for it has no effect then."""
        gone = [key for key in self._found if key[0] == model and adapter in (None, *key[1:])]
        for key in gone:
            del self._found[key]
        wanted = {MODEL: model, **({} if adapter is None else {ADAPTER: adapter})}.items()
        for row, metric in self._metrics if gone else ():
            samples = [sample for family in metric.collect() for sample in family.samples]
            its = [sample.labels for sample in samples if wanted <= sample.labels.items()]
            for values in {tuple(found[label] for label in row.labels) for found in its}:
                metric.remove(*values)

    def _of(self, model: str) -> Series:
        key = (model,)
        if key not in self._found:
            of_models = [one for one in self._metrics if one[0].label != ADAPTER]
            self._found[key] = Series(of_models, model)
        return self._found[key]

    def _of_adapter(self, model: str, adapter: str) -> Series | None:
        """An adapter's numbers. None: the adapter has gone since the request came, and must leave
        no numbers behind."""
        key, infos = (model, adapter), self._engine.infos(self._operation)
        if key not in self._found and any(
            i.model == model and adapter in i.adapters for i in infos
        ):
            of_adapters = [one for one in self._metrics if one[0].label == ADAPTER]
            self._found[key] = Series(of_adapters, *key)
        return self._found.get(key)
