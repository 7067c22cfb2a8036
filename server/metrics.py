"""The server's Prometheus metrics, in one registry per app.

Metrics of requests and connections are here. Each operation brings its own. The engine's
numbers are read when Prometheus asks (`server/engine_collector.py`).
"""

import time
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from engine.contract.operations import AnyOperation
from engine.worker.client import EngineClient
from server.engine_collector import EngineCollector
from server.http.model_metrics import Clock, OperationMetrics
from server.http.served_operation import MetricsT, ServedOperation
from server.served import SERVED


class ServerMetrics:
    """All metrics of one app. Event loop only.

    Attributes:
        registry: what `/metrics` shows.
    """

    def __init__(self, engine: EngineClient, *, clock: Clock = time.perf_counter) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(EngineCollector(engine))
        self._of: dict[AnyOperation, OperationMetrics] = {
            operation: served.metrics(self.registry, engine, clock)
            for operation, served in SERVED.items()
        }
        self._connections_cut = Counter(
            "connections_cut",
            "Connections ended for what their client did or failed to do.",
            ("reason",),
            "tandem",
            registry=self.registry,
        )
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests answered.",
            ("method", "route", "status"),
            "tandem",
            registry=self.registry,
        )

    def of(self, served: ServedOperation[Any, MetricsT]) -> MetricsT:
        """The metrics of one operation."""
        return cast(MetricsT, self._of[served.operation])

    def forget(self, model: str, adapter: str | None = None) -> None:
        """Remove the numbers of a model that is gone, or only those of an adapter."""
        for metrics in self._of.values():
            metrics.forget(model, adapter)

    def count_http(self, method: str, route: str, status: int) -> None:
        """Count an answered request. `route` is a route's template, not a path: clients choose
        paths."""
        self._http_requests.labels(method, route, str(status)).inc()

    def count_cut(self, reason: str) -> None:
        """Count a connection that was ended for what its client sent, or did not send or read."""
        self._connections_cut.labels(reason).inc()
