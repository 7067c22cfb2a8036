"""What the metrics of every kind of model are made of: a label per model, counters of a worker.

Each kind has its own metrics on top, in the registry of the app (`server/metrics.py`).
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

MODEL = "model_name"
"""The first label of each metric, as in vLLM."""


class MetricFactory:
    """Creates one kind's metrics in a registry; `subsystem` is the kind's part of their names."""

    def __init__(self, registry: CollectorRegistry, subsystem: str = "") -> None:
        self._registry = registry
        self._subsystem = subsystem

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(
            name, text, (MODEL, *labels), "tandem", self._subsystem, registry=self._registry
        )

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            name,
            text,
            (MODEL, *labels),
            "tandem",
            self._subsystem,
            registry=self._registry,
            buckets=buckets,
        )


class WorkerTotals:
    """Counters that follow numbers which a worker sums up, and which start anew when it does.

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
