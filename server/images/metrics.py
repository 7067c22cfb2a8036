"""Prometheus metrics of image models: `tandem_image_*`, in the app's registry.

The numbers come from two sides: runs measure each request with an `ImageMeter`; the engine's step
reports arrive through `on_step`. Prometheus computes rates: steps/s and megapixel-steps/s are
`rate()` of the counters.
"""

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry

from engine.contract.draw import ImageEvent, ImageRequest
from engine.contract.operations import DRAW
from engine.contract.phase import Phase
from engine.contract.request import Event
from engine.worker.client import EngineClient
from server.http.item_metrics import ItemMeter, outcomes
from server.http.model_metrics import ADAPTER, Clock, MetricRow, OperationMetrics, Series, fields

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


_ROWS = (
    outcomes("images"),
    MetricRow("previews", "Previews sent to clients."),
    MetricRow("lora_requests", "Requests to draw with a LoRA adapter.", label=ADAPTER),
    MetricRow("lora_images", "Images drawn with a LoRA adapter that had an effect.", label=ADAPTER),
    MetricRow(
        "request_latency_seconds",
        "Time from arrival to the end of a request.",
        _REQUEST_BUCKETS_S,
    ),
    MetricRow("phase_seconds", "Time of an image, by phase.", _PHASE_BUCKETS_S, "phase", PHASES),
    MetricRow(
        "step_rows",
        "Rows (images times guidance branches) of a step.",
        _ROW_BUCKETS,
        read=fields("step_rows"),
    ),
    MetricRow("step_seconds", "Time of a step.", _STEP_BUCKETS_S, read=fields("step_time_s")),
    *(
        MetricRow(name, text, read=fields(field))
        for name, text, field in (
            ("steps", "Calls of a stage, such as the denoiser.", "num_steps"),
            ("rows", "Rows of all steps.", "num_rows"),
            ("image_steps", "Steps summed over images.", "num_image_steps"),
            (
                "megapixel_steps",
                "Steps times megapixels, summed over images.",
                "megapixel_steps",
            ),
            (
                "cancelled_steps",
                "Steps that cancelled images no longer took.",
                "num_cancelled_steps",
            ),
            (
                "throttle_seconds",
                "Seconds slept to leave the device to text.",
                "throttle_time_s",
            ),
            (
                "prompt_cache_queries",
                "Prompts looked up in the prompt cache.",
                "prompt_cache_queries",
            ),
            ("prompt_cache_hits", "Prompts found in the prompt cache.", "prompt_cache_hits"),
        )
    ),
)


MAX_STEPS = 32
"""The most steps of a stage that are shown one by one; the last of them holds the rest."""


class ImageTimes:
    """When the steps of one image ended."""

    def __init__(self) -> None:
        self._stages: dict[str, list[float]] = {}
        self._end_s = 0.0
        self._encode_s = 0.0

    def note(self, event: ImageEvent) -> None:
        """Note an event that has just come."""
        now_s = time.time()
        if event.image is not None:
            self._end_s, self._encode_s = now_s, event.encode_time_s
        elif event.step and event.preview is None:
            ends = self._stages.setdefault(event.stage, [])
            if len(ends) == MAX_STEPS:
                ends.pop()
            ends.append(now_s)

    def phases(self, start_s: float) -> list[Phase]:
        """The phases of the image, whose queue ended at `start_s`."""
        phases = []
        if self._encode_s:
            phases.append(Phase("encode", start_s - self._encode_s, self._encode_s))
        for stage, ends in self._stages.items():
            starts = [start_s, *ends]
            parts = (
                Phase(f"step {i + 1}", starts[i], end_s - starts[i]) for i, end_s in enumerate(ends)
            )
            phases.append(Phase(stage, start_s, ends[-1] - start_s, parts=tuple(parts)))
            start_s = ends[-1]
        if self._end_s:
            phases.append(Phase("decode", start_s, self._end_s - start_s))
        return phases


class ImageMeter(ItemMeter):
    """Measures one request; made by `ImageMetrics.meter`."""

    def __init__(
        self, series: Series, clock: Clock, adapter_of: Callable[[str], Series | None]
    ) -> None:
        super().__init__(series, DRAW, "images", clock)
        self._adapter_of = adapter_of
        self._adapters: dict[str, Series] = {}
        self._request: ImageRequest | None = None
        self._times: dict[int, ImageTimes] = {}

    def begin(self, request: ImageRequest) -> None:
        """Record that the engine has the request; its adapters count from here on."""
        self._request = request
        found = {name: self._adapter_of(name) for name in request.adapter_names}
        self._adapters = {name: one for name, one in found.items() if one is not None}
        for adapter in self._adapters.values():
            adapter.of("lora_requests").inc()

    def on_event(self, event: Event) -> None:
        """Record the time in the queue, previews, and the phases of a finished image."""
        assert isinstance(event, ImageEvent)
        if event.queue_time_s is not None:
            self._observe("queue", event.queue_time_s)
            self._note_queue(event, event.queue_time_s)
        self._times.setdefault(event.index, ImageTimes()).note(event)
        if event.preview is not None:
            self._series.of("previews").inc()
        if event.image is not None:
            self._observe("encode", event.encode_time_s)
            self._observe(event.stage, event.stage_time_s)
            self._observe("decode", event.decode_time_s)
            self._count_adapters(event.index)
            self.used.input_tokens = event.num_prompt_tokens

    def on_file(self, seconds: float) -> None:
        """Record the time that encoding a picture as a file took."""
        self._observe("file", seconds)
        self._trace.add(Phase("file", time.time() - seconds, seconds))

    def _work(self, start_s: float, end_s: float) -> list[Phase]:
        phases = {index: times.phases(start_s) for index, times in self._times.items()}
        if len(phases) == 1:
            return list(*phases.values())
        return [
            Phase(f"image {index}", start_s, parts[-1].end_s - start_s, parts=tuple(parts))
            for index, parts in sorted(phases.items())
            if parts
        ]

    def _observe(self, phase: str, seconds: float) -> None:
        self._series.of("phase_seconds", phase).observe(seconds)

    def _count_adapters(self, index: int) -> None:
        for use in self._request.setting_of(index) if self._request is not None else ():
            if use.scale != 0 and use.name in self._adapters:
                self._adapters[use.name].of("lora_images").inc()


class ImageMetrics(OperationMetrics):
    """The image metrics of one app. Event loop only."""

    def __init__(self, registry: CollectorRegistry, engine: EngineClient, clock: Clock) -> None:
        gauges = (
            "Images in a stage or being decoded.",
            "Images waiting for their first step.",
        )
        super().__init__(DRAW, _ROWS, registry, engine, clock, "image", gauges)

    def meter(self, model: str) -> ImageMeter:
        """Start measuring a request. `model` is a served model's id, never text from a client."""
        return ImageMeter(self._of(model), self._clock, partial(self._of_adapter, model))
