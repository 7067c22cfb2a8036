"""Prometheus metrics of image models: `tandem_image_*`, in the app's registry.

The numbers come from two sides: runs measure each request with an `ImageMeter`; the engine's step
reports arrive through `on_step`. Prometheus computes rates: steps/s and megapixel-steps/s are
`rate()` of the counters.
"""

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Histogram

from engine.contract.draw import ImageEvent, ImageRequest, ImageStats
from engine.contract.operations import DRAW
from engine.worker.client import EngineClient
from server.http.model_metrics import (
    ADAPTER,
    AdapterMetrics,
    MetricFactory,
    OperationMetrics,
    Outcome,
    OutcomeMeter,
    QueueGauges,
    WorkerTotals,
)

_STEP_BUCKETS_S = (
    *(1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0),
)
_REQUEST_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 300.0, 600.0),
)
# Queue, encode and file take milliseconds if an image waits for nothing.
_PHASE_BUCKETS_S = (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, *_REQUEST_BUCKETS_S)
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)

PHASES = ("queue", "encode", "denoise", "decode", "file")
"""Phases that are shown from the start; another stage's name is added once an image has been
through it. `file` is the encoding of the picture as PNG, JPEG or WebP."""


class ImageMeter(OutcomeMeter):
    """Measures one request; made by `ImageMetrics.meter`."""

    def __init__(
        self,
        model: "_ModelMetrics",
        clock: Callable[[], float],
        adapter_of: Callable[[str], "_OneAdapter | None"],
    ) -> None:
        super().__init__(model.images, model.latency, clock)
        self._model = model
        self._adapter_of = adapter_of
        self._adapters: dict[str, _OneAdapter] = {}
        self._request: ImageRequest | None = None

    def begin(self, request: ImageRequest) -> None:
        """Record that the engine has the request; its adapters count from here on."""
        self._request = request
        found = {name: self._adapter_of(name) for name in request.adapter_names}
        self._adapters = {name: one for name, one in found.items() if one is not None}
        for adapter in self._adapters.values():
            adapter.requests.inc()

    def on_event(self, event: ImageEvent) -> None:
        """Record the time in the queue, previews, and the phases of a finished image."""
        phase = self._model.phase
        if event.queue_time_s is not None:
            phase("queue").observe(event.queue_time_s)
        if event.preview is not None:
            self._model.previews.inc()
        if event.image is not None:
            phase("encode").observe(event.encode_time_s)
            phase(event.stage).observe(event.stage_time_s)
            phase("decode").observe(event.decode_time_s)
            self._count_adapters(event.index)

    def on_file(self, seconds: float) -> None:
        """Record the time that encoding a picture as a file took."""
        self._model.phase("file").observe(seconds)

    def _count_adapters(self, index: int) -> None:
        for use in self._request.setting_of(index) if self._request is not None else ():
            if use.scale != 0 and use.name in self._adapters:
                self._adapters[use.name].images.inc()


class ImageMetrics(OperationMetrics["_ModelMetrics"]):
    """The image metrics of one app. Event loop only."""

    def __init__(
        self,
        registry: CollectorRegistry,
        engine: EngineClient,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        factory = MetricFactory(registry, "image")
        metrics = _Metrics(factory)
        self._adapters = AdapterMetrics(engine, DRAW, partial(_OneAdapter, metrics=metrics))
        super().__init__(factory, partial(_ModelMetrics, metrics=metrics), clock, self._adapters)
        registry.register(
            QueueGauges(
                engine,
                DRAW,
                "image",
                running="Images in a stage or being decoded.",
                waiting="Images waiting for their first step.",
            )
        )
        engine.steps.add(DRAW, self.on_step)

    def meter(self, model: str) -> ImageMeter:
        """Start measuring a request. `model` is a served model's id, never text from a client."""
        return ImageMeter(self._of(model), self._clock, partial(self._adapters.of, model))


class _Metrics:
    """The metrics of image models, before a model's name is filled in."""

    def __init__(self, create: MetricFactory) -> None:
        self.images = create.counter("images", "Images ended, by outcome.", "outcome")
        self.previews = create.counter("previews", "Previews sent to clients.")
        self.lora_requests = create.counter(
            "lora_requests", "Requests to draw with a LoRA adapter.", ADAPTER
        )
        self.lora_images = create.counter(
            "lora_images", "Images drawn with a LoRA adapter that had an effect.", ADAPTER
        )
        self.latency = create.histogram(
            "request_latency_seconds",
            "Time from arrival to the end of a request.",
            _REQUEST_BUCKETS_S,
        )
        self.phase = create.histogram(
            "phase_seconds", "Time of an image, by phase.", _PHASE_BUCKETS_S, "phase"
        )
        self.step_rows = create.histogram(
            "step_rows", "Rows (images times guidance branches) of a step.", _ROW_BUCKETS
        )
        self.step_time = create.histogram("step_seconds", "Time of a step.", _STEP_BUCKETS_S)
        self.totals = (
            create.counter("steps", "Calls of a stage, such as the denoiser."),
            create.counter("rows", "Rows of all steps."),
            create.counter("image_steps", "Steps summed over images."),
            create.counter("megapixel_steps", "Steps times megapixels, summed over images."),
            create.counter("cancelled_steps", "Steps that cancelled images no longer took."),
            create.counter("throttle_seconds", "Seconds slept to leave the device to text."),
            create.counter("prompt_cache_queries", "Prompts looked up in the prompt cache."),
            create.counter("prompt_cache_hits", "Prompts found in the prompt cache."),
        )


class _OneAdapter:
    """The metrics of one adapter, in addition to what its requests count for the model."""

    def __init__(self, model: str, adapter: str, metrics: _Metrics) -> None:
        self.requests = metrics.lora_requests.labels(model, adapter)
        self.images = metrics.lora_images.labels(model, adapter)


class _ModelMetrics:
    """The metrics of one model, looked up once because `labels()` is not free."""

    def __init__(self, name: str, metrics: _Metrics) -> None:
        self.images = {outcome: metrics.images.labels(name, outcome) for outcome in Outcome}
        self._phases = {phase: metrics.phase.labels(name, phase) for phase in PHASES}
        self._name, self._phase = name, metrics.phase
        self.previews = metrics.previews.labels(name)
        self.latency = metrics.latency.labels(name)
        self._step_rows = metrics.step_rows.labels(name)
        self._step_time = metrics.step_time.labels(name)
        self._totals = WorkerTotals([counter.labels(name) for counter in metrics.totals])

    def phase(self, phase: str) -> Histogram:
        """The histogram of a phase, or of the stage of that name."""
        if phase not in self._phases:
            self._phases[phase] = self._phase.labels(self._name, phase)
        return self._phases[phase]

    def on_step(self, stats: ImageStats) -> None:
        num_steps, *_ = self._totals.take(_totals(stats))
        if num_steps:
            self._step_rows.observe(stats.step_rows)
            self._step_time.observe(stats.step_time_s)


def _totals(stats: ImageStats) -> tuple[float, ...]:
    """The totals in the order of `_Metrics.totals`."""
    return (
        stats.num_steps,
        stats.num_rows,
        stats.num_image_steps,
        stats.megapixel_steps,
        stats.num_cancelled_steps,
        stats.throttle_time_s,
        stats.prompt_cache_queries,
        stats.prompt_cache_hits,
    )
