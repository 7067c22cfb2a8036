"""Prometheus metrics of text models, in the app's registry.

The numbers come from two sides: generations measure each prompt with a `RequestMeter`; the engine's
step reports arrive through `on_step`. Numbers that are read at scrape time are in
`server/engine_collector.py`. `prompt_tokens_total` and `generation_tokens_total` are the sums of
the `usage` of all requests.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter

from engine.contract.generate import DraftCounts, DrafterName, EngineStats, TokenEvent
from engine.contract.kinds import kind_for
from engine.contract.operations import GENERATE
from engine.contract.request import FinishReason
from engine.worker.client import EngineClient
from server.http.model_metrics import (
    ADAPTER,
    AdapterMetrics,
    MetricFactory,
    OperationMetrics,
    WorkerTotals,
)
from server.text.uncertainty import TokenUncertainty

_TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0),
)
# Most tokens come every 10 to 100 ms; there each bucket is at most a quarter wide.
_ITL_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025, 0.03, 0.035, 0.04),
    *(0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_REQUEST_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0),
    *(15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0),
)
# A free place is taken at the next step, within milliseconds; a full batch takes longer.
_QUEUE_BUCKETS_S = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02),
    *(0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0),
)
_STEP_BUCKETS_S = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
# Measured over predicted: 1 is right; above 1, a step was late.
_PREDICTION_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0)
_STEP_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# A model that suits its text well has means around 1.
_NATS_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)

_STEP_PARTS = ("schedule", "prepare", "forward", "sample", "publish")


DRAFTER = "drafter"
"""The label of drafters in metrics."""


class RequestMeter:
    """Measures one HTTP request from its arrival; made by `TextMetrics.meter`.

    Whoever reads the engine calls `on_event` per engine event, `complete` per completion, `close`
    at the end.
    """

    def __init__(
        self,
        model: "_ModelMetrics",
        clock: Callable[[], float],
        adapter: "_OneAdapter | None" = None,
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._clock = clock
        self._started_s = clock()
        self._last_s: dict[int, float] = {}
        self._closed = False

    def on_event(self, event: TokenEvent) -> None:
        """Record the time to the first token, the time between events with tokens, and the time in
        the queue."""
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
        """Count a completion that ended: by the engine, by a stop string, or because the client
        left."""
        self._model.request_success[reason].inc()

    def on_scores(self, text: TokenUncertainty) -> None:
        """Record the scores of a completion that has ended, if it has log-probabilities."""
        if text.num_tokens:
            self._model.surprise.observe(-text.mean_logprob)
            self._model.entropy.observe(text.mean_entropy)

    def close(self, *, num_prompt_tokens: int, num_generation_tokens: int) -> None:
        """End the measurement; the numbers are those of the request's `usage`. Only the first call
        counts."""
        if self._closed:
            return
        self._closed = True
        self._model.prompt_tokens.inc(num_prompt_tokens)
        self._model.generation_tokens.inc(num_generation_tokens)
        self._model.e2e_latency.observe(self._clock() - self._started_s)
        if self._adapter is not None:
            self._adapter.requests.inc()
            self._adapter.prompt_tokens.inc(num_prompt_tokens)
            self._adapter.generation_tokens.inc(num_generation_tokens)


class TextMetrics(OperationMetrics["_ModelMetrics"]):
    """The metrics of one app's text models. Event loop only."""

    def __init__(
        self,
        registry: CollectorRegistry,
        engine: EngineClient,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        factory = MetricFactory(registry)
        self._metrics = _Metrics(factory)
        self._adapters = AdapterMetrics(
            engine, GENERATE, partial(_OneAdapter, metrics=self._metrics)
        )
        create = partial(_ModelMetrics, metrics=self._metrics)
        super().__init__(factory, create, clock, self._adapters)
        for status in engine.statuses():
            if status.kind in (
                kind_for(GENERATE).name,
                None,
            ):  # the kind is not known before a model is loaded
                self._of(status.model)
        engine.steps.add(GENERATE, self.on_step)

    def meter(self, model: str, adapter: str | None = None) -> RequestMeter:
        """Start measuring a request. `model` is a served model's id, never text from a client."""
        measured = None if adapter is None else self._adapters.of(model, adapter)
        return RequestMeter(self._of(model), self._clock, measured)


class _AdapterCounters:
    """Counters of LoRA adapters, in addition to those of their models."""

    def __init__(self, create: MetricFactory) -> None:
        self.requests = create.counter(
            "lora_requests", "Requests for a LoRA adapter that have ended.", ADAPTER
        )
        self.prompt_tokens = create.counter(
            "lora_prompt_tokens", "Prompt tokens of requests for a LoRA adapter.", ADAPTER
        )
        self.generation_tokens = create.counter(
            "lora_generation_tokens", "Tokens generated for requests for a LoRA adapter.", ADAPTER
        )


def _draft_counters(create: MetricFactory) -> tuple[Counter, ...]:
    """Counters per drafter with vLLM's names: drafts, their tokens, and the accepted ones."""
    return tuple(
        create.counter(f"spec_decode_num_{name}", help, DRAFTER)
        for name, help in (
            ("drafts", "Drafts: guesses of a sequence's next tokens."),
            ("draft_tokens", "Tokens that drafters guessed."),
            ("accepted_tokens", "Guessed tokens that were also drawn."),
        )
    )


class _Metrics:
    """The metrics of text models, before a model's name is filled in."""

    def __init__(self, create: MetricFactory) -> None:
        self.adapters = _AdapterCounters(create)
        self.drafts = _draft_counters(create)
        self.prompt_tokens = create.counter("prompt_tokens", "Prompt tokens of all requests.")
        self.generation_tokens = create.counter(
            "generation_tokens", "Tokens generated for requests."
        )
        self.request_success = create.counter(
            "request_success", "Completions ended, by reason.", "finished_reason"
        )
        self.prefix_cache_queries = create.counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = create.counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self.num_preemptions = create.counter(
            "num_preemptions", "Sequences preempted because blocks ran out."
        )
        self.time_to_first_token = create.histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token.", _TTFT_BUCKETS_S
        )
        self.inter_token_latency = create.histogram(
            "inter_token_latency_seconds", "Time between two token events.", _ITL_BUCKETS_S
        )
        self.e2e_latency = create.histogram(
            "e2e_request_latency_seconds",
            "Time from arrival to the end of a request.",
            _REQUEST_BUCKETS_S,
        )
        self.queue_time = create.histogram(
            "request_queue_time_seconds",
            "Time from arrival to the first scheduling.",
            _QUEUE_BUCKETS_S,
        )
        self.surprise = create.histogram(
            "mean_token_surprise_nats",
            "Mean of -ln p over a completion's tokens, for requests with log-probabilities.",
            _NATS_BUCKETS,
        )
        self.entropy = create.histogram(
            "mean_token_entropy_nats",
            "Mean entropy over a completion's tokens, for requests with log-probabilities.",
            _NATS_BUCKETS,
        )
        self.iteration_tokens = create.histogram(
            "iteration_tokens", "Tokens computed in a step.", _STEP_TOKENS_BUCKETS
        )
        self.step_time = create.histogram(
            "step_time_seconds", "Time of a step, by part.", _STEP_BUCKETS_S, "part"
        )
        self.step_prediction = create.histogram(
            "step_prediction_ratio",
            "Measured over predicted time of a step, for steps with a target.",
            _PREDICTION_BUCKETS,
        )


class _OneAdapter:
    """The metrics of one adapter, in addition to what its requests count for the model."""

    def __init__(self, model: str, adapter: str, metrics: _Metrics) -> None:
        counters = metrics.adapters
        self.requests = counters.requests.labels(model, adapter)
        self.prompt_tokens = counters.prompt_tokens.labels(model, adapter)
        self.generation_tokens = counters.generation_tokens.labels(model, adapter)


class _ModelMetrics:
    """The metrics of one model, looked up once because `labels()` is not free."""

    def __init__(self, name: str, metrics: _Metrics) -> None:
        self.request_success = {
            reason: metrics.request_success.labels(name, reason.value) for reason in FinishReason
        }
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self.generation_tokens = metrics.generation_tokens.labels(name)
        self.time_to_first_token = metrics.time_to_first_token.labels(name)
        self.inter_token_latency = metrics.inter_token_latency.labels(name)
        self.e2e_latency = metrics.e2e_latency.labels(name)
        self.queue_time = metrics.queue_time.labels(name)
        self.surprise = metrics.surprise.labels(name)
        self.entropy = metrics.entropy.labels(name)
        self.iteration_tokens = metrics.iteration_tokens.labels(name)
        self.step_prediction = metrics.step_prediction.labels(name)
        self.step_times = [metrics.step_time.labels(name, part) for part in _STEP_PARTS]
        self.totals = WorkerTotals(
            (
                None,  # steps
                metrics.prefix_cache_queries.labels(name),
                metrics.prefix_cache_hits.labels(name),
                metrics.num_preemptions.labels(name),
                *(
                    counter.labels(name, drafter.value)
                    for drafter in DrafterName
                    for counter in metrics.drafts
                ),
            )
        )

    def on_step(self, stats: EngineStats) -> None:
        num_steps, *_ = self.totals.take(
            (
                stats.num_steps,
                stats.prefix_cache_queries,
                stats.prefix_cache_hits,
                stats.num_preemptions,
                *_draft_totals(stats),
            )
        )
        if not num_steps:
            return
        if stats.step_tokens:
            self.iteration_tokens.observe(stats.step_tokens)
        if stats.step_predicted_s:
            self.step_prediction.observe(stats.step_measured_s / stats.step_predicted_s)
        for histogram, seconds in zip(self.step_times, _step_seconds(stats), strict=True):
            histogram.observe(seconds)


def _draft_totals(stats: EngineStats) -> Iterator[int]:
    """The totals in the order of the counters."""
    for drafter in DrafterName:
        counts = stats.drafts.get(drafter.value, DraftCounts())
        yield from (counts.num_drafts, counts.num_draft_tokens, counts.num_accepted_tokens)


def _step_seconds(stats: EngineStats) -> tuple[float, ...]:
    """The times in the order of `_STEP_PARTS`."""
    return (
        stats.schedule_time_s,
        stats.prepare_time_s,
        stats.forward_time_s,
        stats.sample_time_s,
        stats.publish_time_s,
    )
