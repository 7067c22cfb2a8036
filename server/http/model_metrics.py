"""Building blocks for the metrics of every kind of model: a label per model, counters of a worker.

Each kind has its own metrics on top, in the app's registry (`server/metrics.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.contract.operations import Operation
from engine.contract.request import AdaptableInfo
from engine.errors import RequestAborted, RequestError
from engine.worker.client import EngineClient

MODEL = "model_name"
"""The first label of each metric, as in vLLM."""
ADAPTER = "lora_name"
"""The label of adapters in metrics."""


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


class MetricFactory:
    """Creates one kind's metrics in a registry; `subsystem` is the kind's part of their names."""

    def __init__(self, registry: CollectorRegistry, subsystem: str = "") -> None:
        self._registry = registry
        self._subsystem = subsystem
        self._created: list[tuple[Counter | Histogram, tuple[str, ...]]] = []

    def forget(self, model: str, **labelled: str) -> None:
        """Remove a model's numbers, or only those with certain labels. Whoever still counts for it
        counts for nobody."""
        wanted = {MODEL: model, **labelled}.items()
        for metric, labels in self._created:
            samples = [sample for family in metric.collect() for sample in family.samples]
            its = [sample.labels for sample in samples if wanted <= sample.labels.items()]
            for values in {tuple(found[label] for label in labels) for found in its}:
                metric.remove(*values)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(
            name, text, (MODEL, *labels), "tandem", self._subsystem, registry=self._registry
        )
        self._created.append((counter, (MODEL, *labels)))
        return counter

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        histogram = Histogram(
            name,
            text,
            (MODEL, *labels),
            "tandem",
            self._subsystem,
            registry=self._registry,
            buckets=buckets,
        )
        self._created.append((histogram, (MODEL, *labels)))
        return histogram


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


class OutcomeMeter(ABC):
    """Measures a request from its arrival, and counts how its items ended."""

    def __init__(
        self,
        outcomes: Mapping[Outcome, Counter],
        latency: Histogram,
        clock: Callable[[], float],
    ) -> None:
        self._outcomes = outcomes
        self._latency = latency
        self._clock = clock
        self._started_s = clock()
        self._closed = False

    @abstractmethod
    def on_event(self, event: Any) -> None:
        """Record an event from the engine."""

    def complete(self, outcome: Outcome, count: int = 1) -> None:
        """Count items that ended this way."""
        self._outcomes[outcome].inc(count)

    def close(self) -> None:
        """End the measurement. Only the first call counts."""
        if not self._closed:
            self._closed = True
            self._latency.observe(self._clock() - self._started_s)


class OneModelsMetrics(Protocol):
    """A kind's metrics for one model, looked up once because `labels()` is not free."""

    def on_step(self, stats: Any) -> None:
        """Record a step's report."""
        ...


MetricsT = TypeVar("MetricsT", bound=OneModelsMetrics)


SeriesT = TypeVar("SeriesT")


AdaptableT = TypeVar("AdaptableT", bound=AdaptableInfo)


class AdapterMetrics(Generic[SeriesT, AdaptableT]):
    """Metrics of the adapters of a kind's models, counted in addition to the model's own.

    Args:
        create: returns an adapter's metrics, given the names of its model and itself.
    """

    def __init__(
        self,
        engine: EngineClient,
        kind: Operation[Any, Any, AdaptableT],
        create: Callable[[str, str], SeriesT],
    ) -> None:
        self._engine = engine
        self._kind = kind
        self._create = create
        self._found: dict[tuple[str, str], SeriesT] = {}

    def of(self, model: str, adapter: str) -> SeriesT | None:
        """An adapter's metrics. None: the adapter has gone since the request came, and must leave
        no numbers behind."""
        found = self._found.get((model, adapter))
        infos = self._engine.infos(self._kind)
        if found is None and any(i.model == model and adapter in i.adapters for i in infos):
            found = self._found[model, adapter] = self._create(model, adapter)
        return found

    def forget(self, model: str, adapter: str | None = None) -> bool:
        """Stop counting for an adapter, or for all of the model's. Returns whether one had
        counted."""
        gone = [key for key in self._found if key[0] == model and adapter in (None, key[1])]
        for key in gone:
            del self._found[key]
        return bool(gone)


class OperationMetrics(Generic[MetricsT]):
    """Metrics of one kind of model in one app. Event loop only.

    Args:
        create: returns a model's metrics, given its name.
        adapters: None if models of this kind have no adapters.
    """

    def __init__(
        self,
        factory: MetricFactory,
        create: Callable[[str], MetricsT],
        clock: Callable[[], float],
        adapters: AdapterMetrics[Any, Any] | None = None,
    ) -> None:
        self._factory = factory
        self._create = create
        self._clock = clock
        self._of_adapters = adapters
        self._models: dict[str, MetricsT] = {}

    def on_step(self, model: str, stats: Any) -> None:
        """Record a step's report."""
        self._of(model).on_step(stats)

    def forget(self, model: str) -> None:
        """Remove the metrics of a model that is gone."""
        if self._of_adapters is not None:
            self._of_adapters.forget(model)
        if self._models.pop(model, None) is not None:
            self._factory.forget(model)

    def forget_adapter(self, model: str, adapter: str) -> None:
        """Remove the metrics of an adapter that is gone."""
        if self._of_adapters is not None and self._of_adapters.forget(model, adapter):
            self._factory.forget(model, **{ADAPTER: adapter})

    def _of(self, model: str) -> MetricsT:
        metrics = self._models.get(model)
        if metrics is None:
            metrics = self._models[model] = self._create(model)
        return metrics


class WorkerTotals:
    """Counters that follow numbers which a worker sums up, and which restart with the worker.

    Args:
        counters: one per number of a report; None for a number that is not shown.
    """

    def __init__(self, counters: Sequence[Counter | None]) -> None:
        self._counters = counters
        self._before = (0.0,) * len(counters)

    def take(self, totals: tuple[float, ...]) -> tuple[float, ...]:
        """Count what has been added since the last report, and return it."""
        before = self._before
        if any(now < then for now, then in zip(totals, before, strict=True)):
            before = (0.0,) * len(totals)  # a new worker counts from zero
        self._before = totals
        added = tuple(now - then for now, then in zip(totals, before, strict=True))
        for counter, number in zip(self._counters, added, strict=True):
            if counter is not None and number:
                counter.inc(number)
        return added
