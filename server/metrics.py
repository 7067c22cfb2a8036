"""The server's Prometheus metrics, in one registry per app.

Fed from two sides: routes measure each request with a `RequestMeter`; the engine's step reports
arrive through `on_step`. What can be read at scrape time is in `server/engine_collector.py`.
`prompt_tokens_total` and `generation_tokens_total` are the sums of the `usage` of all requests.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from engine.client import EngineClient
from engine.types import EngineStats, FinishReason, ModelKind, TokenEvent
from server.engine_collector import EngineCollector
from server.images.metrics import ImageMetrics

_TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0),
)
# Most tokens come every 10 to 100 ms: there a bucket is at most a quarter wide.
_ITL_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03, 0.035, 0.04),
    *(0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_REQUEST_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0),
    *(15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0),
)
# A free place is taken at the next step, within milliseconds; a full batch is waited for.
_QUEUE_BUCKETS_S = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02),
    *(0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0),
)
_STEP_BUCKETS_S = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
# Measured over predicted: 1 is right, above it a step was late.
_PREDICTION_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0)
_STEP_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

_STEP_PARTS = ("schedule", "prepare", "forward", "sample", "publish")


class RequestMeter:
    """Measures one HTTP request from its arrival; made by `ServerMetrics.meter`.

    Routes call `on_event` per engine event, `complete` per completion, `close` at the end.
    """

    def __init__(self, model: "_ModelMetrics", clock: Callable[[], float]) -> None:
        self._model = model
        self._clock = clock
        self._started_s = clock()
        self._last_s: dict[int, float] = {}
        self._closed = False

    def on_event(self, event: TokenEvent) -> None:
        """Time to first token, time between events with tokens, and time in the queue."""
        if event.queue_time_s is not None:
            self._model.queue_time.observe(event.queue_time_s)
        if not event.token_ids:
            return
        now = self._clock()
        last_s = self._last_s.get(event.index)
        if last_s is not None:
            self._model.inter_token_latency.observe(now - last_s)
        elif not self._last_s:
            self._model.time_to_first_token.observe(now - self._started_s)
        self._last_s[event.index] = now

    def complete(self, reason: FinishReason) -> None:
        """One completion ended: by the engine, by a stop string, or because the client left."""
        self._model.request_success.labels(self._model.name, reason.value).inc()

    def close(self, *, num_prompt_tokens: int, num_generation_tokens: int) -> None:
        """The request is over; the numbers are those of its `usage`. Only the first call counts."""
        if self._closed:
            return
        self._closed = True
        self._model.prompt_tokens.inc(num_prompt_tokens)
        self._model.generation_tokens.inc(num_generation_tokens)
        self._model.e2e_latency.observe(self._clock() - self._started_s)


class ServerMetrics:
    """All metrics of one app. Event loop only; `registry` is what `/metrics` shows.

    Attributes:
        images: those of image models.
    """

    def __init__(
        self, engine: EngineClient, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._families = _Families(self.registry)
        self._models: dict[str, _ModelMetrics] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(EngineCollector(engine))
        self.images = ImageMetrics(self.registry, engine, clock=clock)
        for status in engine.statuses():
            if status.kind is not ModelKind.IMAGE:
                self._of(status.model)
        engine.on_stats.append(self.on_step)

    def meter(self, model: str) -> RequestMeter:
        """Start measuring a request. `model` is a served model's id, never a client's word."""
        return RequestMeter(self._of(model), self._clock)

    def on_step(self, model: str, stats: EngineStats) -> None:
        """Take a step's report."""
        self._of(model).on_step(stats)

    def count_http(self, method: str, route: str, status: int) -> None:
        """`route` is a route's template, not a path: paths are the client's to choose."""
        self._families.http_requests.labels(method, route, str(status)).inc()

    def count_cut(self, reason: str) -> None:
        """A connection was ended for what its client sent, or did not send or read."""
        self._families.connections_cut.labels(reason).inc()

    def _of(self, model: str) -> "_ModelMetrics":
        metrics = self._models.get(model)
        if metrics is None:
            metrics = self._models[model] = _ModelMetrics(model, self._families)
        return metrics


class _Families:
    """The metric families; `model_name` is their first label, as in vLLM."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("model_name", *labels), "tandem", registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                name,
                text,
                ("model_name", *labels),
                "tandem",
                registry=registry,
                buckets=buckets,
            )

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of all requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated for requests.")
        self.request_success = counter(
            "request_success", "Completions ended, by reason.", "finished_reason"
        )
        self.prefix_cache_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self.num_preemptions = counter(
            "num_preemptions", "Sequences set back because blocks ran out."
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS_S
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between two token events.", _ITL_BUCKETS_S
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "Arrival to end of a request.", _REQUEST_BUCKETS_S
        )
        self.queue_time = histogram(
            "request_queue_time_seconds", "Arrival to first scheduling.", _QUEUE_BUCKETS_S
        )
        self.iteration_tokens = histogram(
            "iteration_tokens", "Tokens computed in a step.", _STEP_TOKENS_BUCKETS
        )
        self.step_time = histogram(
            "step_time_seconds", "Time of a step, by part.", _STEP_BUCKETS_S, "part"
        )
        self.step_prediction = histogram(
            "step_prediction_ratio",
            "Time of a step over what was predicted, where steps have a target.",
            _PREDICTION_BUCKETS,
        )
        self.connections_cut = Counter(
            "connections_cut",
            "Connections ended for what their client did or failed to do.",
            ("reason",),
            "tandem",
            registry=registry,
        )
        self.http_requests = Counter(
            "http_requests",
            "HTTP requests answered.",
            ("method", "route", "status"),
            "tandem",
            registry=registry,
        )


class _ModelMetrics:
    """One model's children of the families, looked up once because `labels()` is not free."""

    def __init__(self, name: str, families: _Families) -> None:
        self.name = name
        self.request_success = families.request_success
        self.prompt_tokens = families.prompt_tokens.labels(name)
        self.generation_tokens = families.generation_tokens.labels(name)
        self.time_to_first_token = families.time_to_first_token.labels(name)
        self.inter_token_latency = families.inter_token_latency.labels(name)
        self.e2e_latency = families.e2e_latency.labels(name)
        self.queue_time = families.queue_time.labels(name)
        self.iteration_tokens = families.iteration_tokens.labels(name)
        self.step_prediction = families.step_prediction.labels(name)
        self.step_times = [families.step_time.labels(name, part) for part in _STEP_PARTS]
        self.totals = (
            families.prefix_cache_queries.labels(name),
            families.prefix_cache_hits.labels(name),
            families.num_preemptions.labels(name),
        )
        for reason in FinishReason:
            self.request_success.labels(name, reason.value)
        self._before = (0, 0, 0, 0)

    def on_step(self, stats: EngineStats) -> None:
        totals = (stats.num_steps, *_worker_totals(stats))
        before = self._before
        if any(now < then for now, then in zip(totals, before, strict=True)):
            before = (0, 0, 0, 0)  # a new worker counts from zero
        self._before = totals
        for counter, now, then in zip(self.totals, totals[1:], before[1:], strict=True):
            if now > then:
                counter.inc(now - then)
        if stats.num_steps == before[0]:
            return
        if stats.step_tokens:
            self.iteration_tokens.observe(stats.step_tokens)
        if stats.step_predicted_s:
            self.step_prediction.observe(stats.step_measured_s / stats.step_predicted_s)
        for histogram, seconds in zip(self.step_times, _step_seconds(stats), strict=True):
            histogram.observe(seconds)


def _worker_totals(stats: EngineStats) -> tuple[int, int, int]:
    return stats.prefix_cache_queries, stats.prefix_cache_hits, stats.num_preemptions


def _step_seconds(stats: EngineStats) -> tuple[float, ...]:
    """In the order of `_STEP_PARTS`."""
    return (
        stats.schedule_time_s,
        stats.prepare_time_s,
        stats.forward_time_s,
        stats.sample_time_s,
        stats.publish_time_s,
    )
