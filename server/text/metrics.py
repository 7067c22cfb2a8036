"""Prometheus metrics of text models, in the app's registry.

The numbers come from two sides: generations measure each prompt with a `RequestMeter`; the engine's
step reports arrive through `on_step`. Numbers that are read at scrape time are in
`server/engine_collector.py`. `prompt_tokens_total` and `generation_tokens_total` are the sums of
the `usage` of all requests.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from engine.contract.generate import DraftCounts, DrafterName, EngineStats, TokenEvent
from engine.contract.kinds import kind_for
from engine.contract.operations import GENERATE
from engine.contract.request import FinishReason
from engine.worker.client import EngineClient
from server.http.model_metrics import ADAPTER, Clock, MetricRow, OperationMetrics, Series, fields
from server.http.request_trace import current_trace
from server.http.usage import Used
from server.text.phases import TextTimes
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

_TOKENS_BUCKETS = tuple(1 << power for power in range(18))

# A model that suits its text well has means around 1.
_NATS_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)

_STEP_PARTS = ("schedule", "prepare", "forward", "sample", "publish")


def _drafts(what: str, text: str) -> MetricRow:
    """A counter per drafter, with vLLM's name."""

    def read(stats: EngineStats) -> list[float]:
        counts = [stats.drafts.get(drafter.value, DraftCounts()) for drafter in DrafterName]
        return [getattr(count, f"num_{what}") for count in counts]

    name = f"spec_decode_num_{what}"
    return MetricRow(name, text, label="drafter", values=tuple(DrafterName), read=read)


def _stored(field: str) -> Callable[[EngineStats], list[float | None]]:
    return lambda stats: [getattr(stats.kv_store, field)]


def _transferred(field: str) -> Callable[[EngineStats], list[float | None]]:
    return lambda stats: [getattr(stats.kv_transfer, field)]


def _tokens_of_step(stats: EngineStats) -> list[float | None]:
    return [stats.step_tokens or None]


def _prediction_ratio(stats: EngineStats) -> list[float | None]:
    if not stats.step_predicted_s:
        return [None]
    return [stats.step_measured_s / stats.step_predicted_s]


_ROWS = (
    MetricRow("lora_requests", "Requests for a LoRA adapter that have ended.", label=ADAPTER),
    MetricRow("lora_prompt_tokens", "Prompt tokens of requests for a LoRA adapter.", label=ADAPTER),
    MetricRow(
        "lora_generation_tokens",
        "Tokens generated for requests for a LoRA adapter.",
        label=ADAPTER,
    ),
    _drafts("drafts", "Drafts: guesses of a sequence's next tokens."),
    _drafts("draft_tokens", "Tokens that drafters guessed."),
    _drafts("accepted_tokens", "Guessed tokens that were also drawn."),
    MetricRow("prompt_tokens", "Prompt tokens of all requests."),
    MetricRow("generation_tokens", "Tokens generated for requests."),
    MetricRow(
        "request_success",
        "Completions ended, by reason.",
        label="finished_reason",
        values=tuple(FinishReason),
    ),
    *(
        MetricRow(field, text, read=fields(field))
        for field, text in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
            ("num_preemptions", "Sequences preempted because blocks ran out."),
            (
                "kv_event_batches_dropped",
                "Batches of KV events that were not published in time; a replay has them.",
            ),
        )
    ),
    *(
        MetricRow(f"kv_store_{name}", text, read=_stored(field))
        for name, field, text in (
            ("read_blocks", "num_blocks_read", "KV blocks read from the KV store."),
            ("read_bytes", "num_bytes_read", "Bytes of these blocks."),
            ("written_blocks", "num_blocks_written", "KV blocks written to the KV store."),
            ("written_bytes", "num_bytes_written", "Bytes of these blocks."),
            ("lost_blocks", "num_blocks_lost", "KV blocks that could not be written."),
            ("refused_files", "num_files_refused", "Damaged files found in the KV store."),
        )
    ),
    *(
        MetricRow(f"kv_transfer_{name}", text, read=_transferred(field))
        for name, field, text in (
            ("loans", "num_loans", "Prompts whose KV blocks were kept for another server."),
            ("expired_loans", "num_loans_expired", "Of these, those that nobody fetched."),
            ("withdrawn_loans", "num_loans_withdrawn", "Of these, those needed here meanwhile."),
            ("refused_loans", "num_loans_refused", "Prompts with no room to keep their blocks."),
            ("sent_blocks", "num_blocks_sent", "KV blocks sent to other servers."),
            ("fetched_blocks", "num_blocks_fetched", "KV blocks fetched from other servers."),
            ("failed_fetches", "num_fetches_failed", "Prompts whose blocks could not be fetched."),
        )
    ),
    MetricRow(
        "time_to_first_token_seconds", "Time from arrival to the first token.", _TTFT_BUCKETS_S
    ),
    MetricRow("inter_token_latency_seconds", "Time between two token events.", _ITL_BUCKETS_S),
    MetricRow(
        "e2e_request_latency_seconds",
        "Time from arrival to the end of a request.",
        _REQUEST_BUCKETS_S,
    ),
    MetricRow(
        "request_queue_time_seconds", "Time from arrival to the first scheduling.", _QUEUE_BUCKETS_S
    ),
    MetricRow(
        "request_prefill_time_seconds",
        "Time from the first scheduling to the first token.",
        _TTFT_BUCKETS_S,
    ),
    MetricRow(
        "request_decode_time_seconds",
        "Time from the first token to the end of a request.",
        _REQUEST_BUCKETS_S,
    ),
    MetricRow("request_prompt_tokens", "Tokens of a prompt.", _TOKENS_BUCKETS),
    MetricRow(
        "request_generation_tokens",
        "Tokens generated for a prompt, of all its completions.",
        _TOKENS_BUCKETS,
    ),
    MetricRow(
        "mean_token_surprise_nats",
        "Mean of -ln p over a completion's tokens, for requests with log-probabilities.",
        _NATS_BUCKETS,
    ),
    MetricRow(
        "mean_token_entropy_nats",
        "Mean entropy over a completion's tokens, for requests with log-probabilities.",
        _NATS_BUCKETS,
    ),
    MetricRow(
        "iteration_tokens",
        "Tokens computed in a step.",
        _STEP_TOKENS_BUCKETS,
        read=_tokens_of_step,
    ),
    MetricRow(
        "step_time_seconds",
        "Time of a step, by part.",
        _STEP_BUCKETS_S,
        "part",
        _STEP_PARTS,
        fields(*(f"{part}_time_s" for part in _STEP_PARTS)),
    ),
    MetricRow(
        "step_prediction_ratio",
        "Measured over predicted time of a step, for steps with a target.",
        _PREDICTION_BUCKETS,
        read=_prediction_ratio,
    ),
)


class RequestMeter:
    """Measures one HTTP request from its arrival; made by `TextMetrics.meter`.

    The code that reads the engine's events calls `on_event` for each, `complete` per completion,
    `close` at the end.
    """

    def __init__(
        self,
        series: Series,
        clock: Clock,
        name: str,
        adapter: Series | None = None,
        arrival_s: float = 0.0,
    ) -> None:
        self._series = series
        self._name = name
        self._adapter = adapter
        self._clock = clock
        self._started_s = clock()
        self._last_s: dict[int, float] = {}
        self._trace = current_trace()
        self._times = TextTimes(arrival_s or time.time())
        self._used = Used()
        self._closed = False

    def on_event(self, event: TokenEvent) -> None:
        """Record the time to the first token, the time between events with tokens, and the time in
        the queue."""
        if event.queue_time_s is not None:
            self._series.of("request_queue_time_seconds").observe(event.queue_time_s)
            self._used.cached_tokens = event.num_cached_tokens
            self._trace.note_queue(event.queue_time_s)
        if event.phases or event.queue_time_s is not None:
            self._times.note(event)
        if not event.token_ids:
            return
        now = self._clock()
        last_s = self._last_s.get(event.index)
        if last_s is not None:
            self._series.of("inter_token_latency_seconds").observe(now - last_s)
        elif not self._last_s:
            first_s, exemplar = now - self._started_s, self._trace.exemplar
            self._series.of("time_to_first_token_seconds").observe(first_s, exemplar)
            self._times.note_first_token()
        self._last_s[event.index] = now

    def complete(self, reason: FinishReason) -> None:
        """Count a completion that ended: by the engine, by a stop string, or because the client
        left."""
        self._series.of("request_success", reason).inc()
        self._trace.note_finish(reason.value)
        self._used.num_results += reason not in (FinishReason.ABORT, FinishReason.ERROR)

    def on_scores(self, text: TokenUncertainty) -> None:
        """Record the scores of a completion that has ended, if it has log-probabilities."""
        if text.num_tokens:
            self._series.of("mean_token_surprise_nats").observe(-text.mean_logprob)
            self._series.of("mean_token_entropy_nats").observe(text.mean_entropy)

    def close(self, *, num_prompt_tokens: int, num_generation_tokens: int) -> None:
        """End the measurement; the numbers are those of the request's `usage`. Only the first call
        counts."""
        if self._closed:
            return
        self._closed = True
        self._series.of("prompt_tokens").inc(num_prompt_tokens)
        self._series.of("generation_tokens").inc(num_generation_tokens)
        total_s, exemplar = self._clock() - self._started_s, self._trace.exemplar
        self._series.of("e2e_request_latency_seconds").observe(total_s, exemplar)
        if self._adapter is not None:
            self._adapter.of("lora_requests").inc()
            self._adapter.of("lora_prompt_tokens").inc(num_prompt_tokens)
            self._adapter.of("lora_generation_tokens").inc(num_generation_tokens)
        self._used.input_tokens = num_prompt_tokens
        self._used.output_tokens = num_generation_tokens
        self._trace_end()

    def _trace_end(self) -> None:
        """Tell the request's trace what was used, and where the time went."""
        model, trace, times = self._name, self._trace, self._times
        self._series.of("request_prompt_tokens").observe(self._used.input_tokens)
        self._series.of("request_generation_tokens").observe(self._used.output_tokens)
        if times.prefill_s is not None and times.decode_s is not None:
            self._series.of("request_prefill_time_seconds").observe(times.prefill_s)
            self._series.of("request_decode_time_seconds").observe(times.decode_s)
        trace.add(times.whole(f"{GENERATE.name} {model}", self._used.output_tokens))
        if trace.first_token_s is None:
            trace.first_token_s = times.first_token_s
            trace.decode_s = times.decode_s
        trace.use(model, GENERATE.name, self._used)


class TextMetrics(OperationMetrics):
    """The metrics of one app's text models. Event loop only."""

    def __init__(self, registry: CollectorRegistry, engine: EngineClient, clock: Clock) -> None:
        super().__init__(GENERATE, _ROWS, registry, engine, clock)
        # The kind is not known before a model is loaded.
        kinds = (kind_for(GENERATE).name, None)
        for status in engine.statuses():
            if status.kind in kinds:
                self._of(status.model)

    def meter(self, model: str, adapter: str | None = None, arrival_s: float = 0.0) -> RequestMeter:
        """Start measuring a request, which has arrived now unless `arrival_s` says when. `model` is
        a served model's id, never text from a client."""
        measured = None if adapter is None else self._of_adapter(model, adapter)
        name = adapter if measured is not None and adapter is not None else model
        return RequestMeter(self._of(model), self._clock, name, measured, arrival_s)
