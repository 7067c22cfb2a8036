"""The server's Prometheus metrics, in one registry per app.

Those of requests and connections are here; each kind of model brings its own, and what the engine
knows is read from it when Prometheus asks (`server/engine_collector.py`).
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from engine.client import EngineClient
from server.engine_collector import EngineCollector
from server.images.metrics import ImageMetrics
from server.text.metrics import TextMetrics


class ServerMetrics:
    """All metrics of one app. Event loop only.

    Attributes:
        registry: what `/metrics` shows.
        text, images: those of each kind of model.
    """

    def __init__(
        self, engine: EngineClient, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(EngineCollector(engine))
        self.text = TextMetrics(self.registry, engine, clock=clock)
        self.images = ImageMetrics(self.registry, engine, clock=clock)
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

    def count_http(self, method: str, route: str, status: int) -> None:
        """`route` is a route's template, not a path: paths are the client's to choose."""
        self._http_requests.labels(method, route, str(status)).inc()

    def count_cut(self, reason: str) -> None:
        """A connection was ended for what its client sent, or did not send or read."""
        self._connections_cut.labels(reason).inc()
