"""The image engine: admit, denoise one step, hand finished latents to the decode thread, publish.

One iteration is one denoiser call over the rows of the samples that the scheduler picked. Between
two iterations requests join, leave and are cancelled.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch

from engine.diffusion.decoding import Decoded, DecodeThread, finite
from engine.diffusion.families.family import Family
from engine.diffusion.prompt_cache import PromptCache
from engine.diffusion.sample import Sample
from engine.diffusion.sample_factory import SampleFactory
from engine.diffusion.scheduler import Entry, StepDecision, StepScheduler
from engine.diffusion.tasks.pixels import from_tensor
from engine.errors import QueueFull
from engine.fault import answer_for, raise_if_poisoned
from engine.image_types import ImageEvent, ImageRequest, ImageStats, Pixels
from engine.rejection import rejection
from engine.types import FinishReason

_RESULT = -1
"""In a decode key: the finished picture, not a preview."""
_DECODE_WAIT_S = 0.02
_ADMIT_S, _ADMIT_SHARE_OF_STEP = 0.02, 0.25
"""Time for preparing requests between two steps: the larger of the two, and one request in any
case. Preparing may take a text encoder of billions of weights, or a few milliseconds."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionLimits:
    """What an image engine runs by."""

    max_num_rows: int
    max_batch_pixels: int
    """Rows times pixels of a denoiser call."""
    max_num_images: int
    """Images being denoised or decoded at once; further requests wait."""
    max_num_queued: int
    deterministic: bool = False
    """Each sample in calls of its own: bit-equal to running alone, without the gain of batching."""


@dataclass(slots=True)
class _Totals:
    num_steps: int = 0
    num_rows: int = 0
    num_image_steps: int = 0
    megapixel_steps: float = 0.0
    num_images: int = 0
    num_cancelled_steps: int = 0
    encode_time_s: float = 0.0
    denoise_time_s: float = 0.0
    decode_time_s: float = 0.0


class DiffusionEngine:
    """A `SteppingEngine` for images. All calls come from one thread."""

    def __init__(self, family: Family, limits: DiffusionLimits) -> None:
        self._family = family
        self._limits = limits
        self._prompts = PromptCache(family)
        self._factory = SampleFactory(family, self._prompts)
        self._scheduler = StepScheduler(limits.max_num_rows, limits.max_batch_pixels)
        self._decoder = DecodeThread()
        self._waiting: deque[ImageRequest] = deque()
        self._samples: dict[int, Sample] = {}
        """Being denoised or decoded."""
        self._totals = _Totals()
        self._step_rows = 0
        self._step_time_s = 0.0

    def add(self, request: ImageRequest) -> None:
        """Queue a request.

        Raises:
            QueueFull: too many wait already.
        """
        if len(self._waiting) >= self._limits.max_num_queued:
            raise QueueFull(
                f"{len(self._waiting)} image requests wait; the limit is "
                f"{self._limits.max_num_queued}; try again later"
            )
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Drop a request at once; unknown ids are ignored."""
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        for sample in list(self._samples.values()):
            if sample.request.request_id == request_id:
                left = sample.schedule.num_positions - sample.position
                self._totals.num_cancelled_steps += left
                self._drop(sample)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._samples or self._decoder.num_pending)

    @torch.inference_mode()
    def step(self) -> tuple[list[ImageEvent], ImageStats]:
        """Admit a request, run one denoiser call, collect what was decoded."""
        events = self._admit()
        decision, failures = self._decide()
        events += failures
        if decision is not None:
            events += self._run(decision)
        # With nothing to denoise this waits for the decoder rather than spin.
        events += self._collect(0.0 if decision is not None or events else _DECODE_WAIT_S)
        return events, self.stats()

    def stats(self) -> ImageStats:
        """The account as of now."""
        return ImageStats(
            num_running=len(self._samples),
            num_waiting=sum(request.params.n for request in self._waiting),
            step_rows=self._step_rows,
            step_time_s=self._step_time_s,
            num_steps=self._totals.num_steps,
            num_rows=self._totals.num_rows,
            num_image_steps=self._totals.num_image_steps,
            megapixel_steps=self._totals.megapixel_steps,
            num_images=self._totals.num_images,
            num_cancelled_steps=self._totals.num_cancelled_steps,
            encode_time_s=self._totals.encode_time_s,
            denoise_time_s=self._totals.denoise_time_s,
            decode_time_s=self._totals.decode_time_s,
            prompt_cache_queries=self._prompts.num_queries,
            prompt_cache_hits=self._prompts.num_hits,
        )

    def reset_totals(self) -> None:
        """Forget what was done so far: a warm-up is nobody's request."""
        self._totals = _Totals()
        self._prompts.num_queries = self._prompts.num_hits = 0

    def shutdown(self) -> None:
        """End the decode thread."""
        self._decoder.close()

    def _admit(self) -> list[ImageEvent]:
        """Prepare waiting requests, the most urgent first, as long as there is room and for so
        short a time that those which run do not stand still for long."""
        events: list[ImageEvent] = []
        most_s = max(_ADMIT_S, _ADMIT_SHARE_OF_STEP * self._step_time_s)
        until_s = time.perf_counter() + most_s
        while self._waiting and (not events or time.perf_counter() < until_s):
            request = min(self._waiting, key=lambda r: r.priority)
            room = self._limits.max_num_images - len(self._samples)
            if self._samples and request.params.n > room:
                break
            self._waiting.remove(request)
            events += self._prepare(request)
        return events

    def _prepare(self, request: ImageRequest) -> list[ImageEvent]:
        try:
            return self._start(request)
        except Exception as error:
            self.abort(request.request_id)
            return rejection(request, answer_for(error, request.request_id))

    def _start(self, request: ImageRequest) -> list[ImageEvent]:
        samples = self._factory.create(request)
        queue_time_s = max(0.0, time.time() - request.arrival_time_s)
        events = [self._event(sample, queue_time_s=queue_time_s) for sample in samples]
        for sample in samples:
            self._totals.encode_time_s += sample.encode_time_s
            self._samples[sample.sample_id] = sample
            self._scheduler.add(_entry(sample))
        return events

    def _decide(self) -> tuple[StepDecision | None, list[ImageEvent]]:
        """The next denoiser call, and the events of samples for which no call can be decided."""
        try:
            return self._scheduler.schedule(), []
        except Exception as error:
            raise_if_poisoned(error)
            samples = [sample for sample in self._samples.values() if not sample.finished]
            events = self._each(samples, self._check_schedulable)
            # Nobody alone is to blame: then all are, rather than try for ever.
            return None, events or self._fail_each(samples, error)

    def _run(self, decision: StepDecision) -> list[ImageEvent]:
        """One denoiser call and what follows from it for each sample."""
        samples = [self._samples[sample_id] for sample_id in decision.sample_ids]
        started_s = time.perf_counter()
        num_rows = sum(sample.num_rows for sample in samples)
        most_at_once = 1 if self._limits.deterministic else len(samples)
        events: list[ImageEvent] = []
        for start in range(0, len(samples), most_at_once):
            events += self._denoise(samples[start : start + most_at_once])
        elapsed_s = time.perf_counter() - started_s
        self._scheduler.commit(decision, elapsed_s)
        samples = [sample for sample in samples if sample.sample_id in self._samples]
        self._account(samples, num_rows, elapsed_s)
        for sample in samples:
            sample.denoise_time_s += elapsed_s
        events += self._each(samples, self._after_step)
        return events + [self._event(s) for s in samples if s.sample_id in self._samples]

    def _denoise(self, samples: Sequence[Sample]) -> list[ImageEvent]:
        """One call, and the step of each sample; if the call fails, one for each half, down to the
        samples that fail it alone. The events are theirs."""
        try:
            predictions = self._predict(samples)
        except Exception as error:
            if len(samples) == 1:
                return self._fail_each(samples, error)
            raise_if_poisoned(error)
            log.warning(
                "a denoising step failed; its images are tried apart",
                error=type(error).__name__,
                num_images=len(samples),
            )
            half = len(samples) // 2
            return self._denoise(samples[:half]) + self._denoise(samples[half:])
        return self._each(samples, lambda sample: sample.advance(predictions[sample.sample_id]))

    def _predict(self, samples: Sequence[Sample]) -> dict[int, Sequence[torch.Tensor]]:
        """What the denoiser says to each sample's rows, by sample id. Changes none of them."""
        rows = [sample.rows() for sample in samples]
        flat = [row for each in rows for row in each]
        predictions = iter(torch.split(self._family.denoise(samples[0].denoiser_key, flat), 1))
        return {
            sample.sample_id: list(itertools.islice(predictions, len(each)))
            for sample, each in zip(samples, rows, strict=True)
        }

    def _each(
        self, samples: Sequence[Sample], work: Callable[[Sample], object]
    ) -> list[ImageEvent]:
        """Do something with each sample. Whichever it fails for ends: the events are theirs."""
        events: list[ImageEvent] = []
        for sample in samples:
            try:
                work(sample)
            except Exception as error:
                events += self._fail_each([sample], error)
        return events

    def _check_schedulable(self, sample: Sample) -> None:
        alone = StepScheduler(self._limits.max_num_rows, self._limits.max_batch_pixels)
        alone.add(_entry(sample))
        alone.schedule()

    def _after_step(self, sample: Sample) -> None:
        if sample.finished:
            self._scheduler.remove(sample.sample_id)
            latents, finish = sample.result(), sample.preparation.finish
            self._decode(sample, _RESULT, self._family.decode, latents, finish)
            return
        self._scheduler.update(sample.sample_id, num_rows=sample.num_rows)
        if sample.preview_due():
            assert sample.x0 is not None
            index = len(sample.preview_steps)
            sample.preview_steps.append(sample.step)
            self._decode(sample, index, self._family.preview, sample.x0, lambda pixels: pixels)

    def _decode(
        self,
        sample: Sample,
        index: int,
        decode: Callable[[torch.Tensor], torch.Tensor],
        latents: torch.Tensor,
        finish: Callable[[Pixels], Pixels],
    ) -> None:
        def work() -> Pixels:
            picture = finite(decode(finite(latents, "latents")), "a picture")
            return finish(from_tensor(picture[0]))

        self._decoder.submit((sample.sample_id, index), work)

    def _collect(self, wait_s: float) -> list[ImageEvent]:
        events: list[ImageEvent] = []
        if self._decoder.num_pending:
            for decoded in self._decoder.collect(wait_s):
                self._totals.decode_time_s += decoded.elapsed_s
                sample = self._samples.get(decoded.key[0])
                if sample is not None:  # those of cancelled samples have no event
                    events += self._take(sample, decoded)
        return events

    def _take(self, sample: Sample, decoded: Decoded) -> list[ImageEvent]:
        """The event of one decoded picture."""
        try:
            if decoded.error is not None:
                raise decoded.error
            event = self._decoded_event(sample, decoded)
        except Exception as error:
            return self._fail_each([sample], error)
        if event.finish_reason is not None:
            self._drop(sample)
            self._totals.num_images += 1
        return [event]

    def _decoded_event(self, sample: Sample, decoded: Decoded) -> ImageEvent:
        index = decoded.key[1]
        if index != _RESULT:
            # The sample has gone on since.
            step = sample.preview_steps[index]
            return self._event(sample, step=step, preview=decoded.pixels, preview_index=index)
        return self._event(
            sample,
            image=decoded.pixels,
            finish_reason=FinishReason.STOP,
            warnings=sample.warnings,
            decode_time_s=decoded.elapsed_s,
        )

    def _fail_each(self, samples: Sequence[Sample], error: Exception) -> list[ImageEvent]:
        """End samples, each with a reference of its own to what is logged."""
        events: list[ImageEvent] = []
        for sample in samples:
            self._drop(sample)
            answer = answer_for(error, sample.request.request_id)
            events += rejection(sample.request, answer, (sample.index,))
        return events

    def _drop(self, sample: Sample) -> None:
        self._scheduler.remove(sample.sample_id)
        self._samples.pop(sample.sample_id, None)

    def _account(self, samples: Sequence[Sample], num_rows: int, elapsed_s: float) -> None:
        totals = self._totals
        totals.num_steps += 1
        totals.num_rows += num_rows
        totals.num_image_steps += len(samples)
        totals.megapixel_steps += sum(
            s.preparation.width * s.preparation.height / 1e6 for s in samples
        )
        totals.denoise_time_s += elapsed_s
        self._step_rows, self._step_time_s = num_rows, elapsed_s

    def _event(self, sample: Sample, *, step: int | None = None, **fields: object) -> ImageEvent:
        return ImageEvent(
            request_id=sample.request.request_id,
            index=sample.index,
            step=sample.step if step is None else step,
            num_steps=sample.num_steps,
            seed=sample.seed,
            num_prompt_tokens=sample.num_prompt_tokens,
            encode_time_s=sample.encode_time_s,
            denoise_time_s=sample.denoise_time_s,
            **fields,  # type: ignore[arg-type]
        )


def _entry(sample: Sample) -> Entry:
    return Entry(
        sample_id=sample.sample_id,
        group=sample.group,
        num_rows=sample.num_rows,
        num_pixels=sample.preparation.width * sample.preparation.height,
        num_steps=sample.num_steps,
        priority=sample.request.priority,
    )
