"""The image engine. Each iteration admits requests, computes one step, and publishes results.

An iteration is one call over the rows of the drawings that the scheduler picked, all in stages of
one kind, such as denoising. Finished latents go to the decode thread. Between two iterations
requests join, leave and are cancelled.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import torch

from engine.contract.adapter_orders import AdapterOrder, Answer, NoAdapters, ServedAdapters
from engine.contract.draw import ImageEvent, ImageRequest, ImageStats
from engine.contract.examination import Examined
from engine.contract.pixels import Pixels
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from engine.contract.worker_settings import Policy
from engine.diffusion.decoding import Decoded, DecodeThread
from engine.diffusion.drawing import Drawing, DrawingSource
from engine.diffusion.scheduler import Entry, StepDecision, StepScheduler
from engine.errors import QueueFull
from engine.runtime.fault import answer_for, raise_if_poisoned
from engine.turns.adapter_queue import AdapterQueue
from engine.turns.policy import create_policy
from engine.turns.queue import WaitingQueue

_RESULT, _BETWEEN = -1, -2
"""Markers in decode keys in place of a preview's index: the finished picture, and the picture that
another pass continues from."""
_DECODE_WAIT_S = 0.02
_ADMIT_S, _ADMIT_SHARE_OF_STEP = 0.02, 0.25
"""The time for preparing requests between two steps is the larger of these; one request is always
prepared. This can take a text encoder with billions of weights, or a few milliseconds."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionLimits:
    """The limits that an image engine runs with."""

    max_num_rows: int
    max_batch_pixels: int
    """The most pixels of a call, summed over its rows."""
    max_num_images: int
    """The most images in a stage or being decoded; further requests wait."""
    max_num_queued: int
    scheduling_policy: Policy = "fcfs"
    deterministic: bool = False
    """Whether each drawing has calls of its own. It is then bit-equal to running alone even if the
    model's rows depend on which rows share their batch, without the gain of batching."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    rank: tuple[int, ...]
    request: ImageRequest


@dataclass(slots=True)
class _Totals:
    num_steps: int = 0
    num_rows: int = 0
    num_image_steps: int = 0
    megapixel_steps: float = 0.0
    num_images: int = 0
    num_cancelled_steps: int = 0
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    decode_time_s: float = 0.0


class DiffusionEngine:
    """The `SteppingEngine` of images. All calls come from one thread."""

    def __init__(
        self,
        source: DrawingSource,
        limits: DiffusionLimits,
        adapters: ServedAdapters | None = None,
    ) -> None:
        self._source = source
        self._adapters = adapters or NoAdapters()
        self._without_adapters: AdapterQueue[ImageRequest] = AdapterQueue(self._adapters)
        self._limits = limits
        self._scheduler = StepScheduler(limits.max_num_rows, limits.max_batch_pixels)
        self._decoder = DecodeThread()
        self._policy = create_policy(limits.scheduling_policy)
        self._waiting: WaitingQueue[_Waiting] = self._policy.create_queue()
        self._arrivals = itertools.count()
        self._drawings: dict[int, Drawing] = {}
        """The drawings in a stage or being decoded."""
        self._totals = _Totals()
        self._step_rows = 0
        self._step_time_s = 0.0

    def add(self, request: ImageRequest) -> None:
        """Queue a request.

        Raises:
            QueueFull: too many wait already.
            UnknownAdapter: the model does not have an adapter that the request names.
        """
        num_waiting = len(self._waiting) + len(self._without_adapters)
        if num_waiting >= self._limits.max_num_queued:
            raise QueueFull(
                f"{num_waiting} image requests are waiting; the limit is "
                f"{self._limits.max_num_queued}; try again later"
            )
        # The names may mean other adapters before the request ends.
        keyed = [
            [replace(use, name=self._adapters.key_of(use.name)) for use in setting]
            for setting in request.loras
        ]
        request = replace(request, loras=keyed)
        self._adapters.check(request.adapter_names)
        if self._adapters.take(request.adapter_names):
            self._queue(request)
        else:
            self._without_adapters.add(request)

    def _queue(self, request: ImageRequest) -> None:
        """Queue a request whose adapters are in place."""
        rank = self._policy.rank(request, next(self._arrivals))
        self._waiting.push(_Waiting(rank, request))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request at once. Ignores unknown ids and aborts of a single image."""
        if index is not None:
            return
        self._without_adapters.forget(request_id)
        for waiting in [w for w in self._waiting if w.request.request_id == request_id]:
            self._waiting.remove(waiting)
        for drawing in list(self._drawings.values()):
            if drawing.request.request_id == request_id:
                self._totals.num_cancelled_steps += drawing.num_steps - drawing.step
                self._drop(drawing)

    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._has_requests() or self._without_adapters.has_work()

    def load_adapter(self, order: AdapterOrder, answer: Answer) -> None:
        """Begin to load an adapter while steps continue; the answer says when it is there."""
        self._adapters.load(order, answer)

    def unload_adapter(self, name: str, answer: Answer) -> None:
        """Take no more requests for an adapter. When it has none left it is removed and
        answered."""
        self._adapters.unload(name, answer)

    @torch.inference_mode()
    def step(self) -> tuple[list[ImageEvent], ImageStats]:
        """Admit requests, compute one call and collect decoded pictures."""
        events = self._advance_adapters()
        events += self._admit()
        decision, failures = self._decide()
        events += failures
        self._decoder.is_alone = decision is None
        if decision is not None:
            events += self._run(decision)
        # With nothing to compute this waits for the decoder instead of spinning.
        events += self._collect(0.0 if decision is not None or events else _DECODE_WAIT_S)
        return events, self.stats()

    def stats(self) -> ImageStats:
        """The current statistics."""
        return ImageStats(
            num_running=len(self._drawings),
            num_waiting=sum(request.params.n for request in self._waiting_requests()),
            step_rows=self._step_rows,
            step_time_s=self._step_time_s,
            num_steps=self._totals.num_steps,
            num_rows=self._totals.num_rows,
            num_image_steps=self._totals.num_image_steps,
            megapixel_steps=self._totals.megapixel_steps,
            num_images=self._totals.num_images,
            num_cancelled_steps=self._totals.num_cancelled_steps,
            encode_time_s=self._totals.encode_time_s,
            stage_time_s=self._totals.stage_time_s,
            decode_time_s=self._totals.decode_time_s,
            prompt_cache_queries=self._source.lookups.num_queries,
            prompt_cache_hits=self._source.lookups.num_hits,
        )

    def reset_totals(self) -> None:
        """Reset all totals after the warm-up, which is not a client's request."""
        self._totals = _Totals()
        self._source.lookups.num_queries = self._source.lookups.num_hits = 0

    def shutdown(self) -> None:
        """End the decode thread."""
        self._decoder.close()

    def _has_requests(self) -> bool:
        return bool(self._waiting or self._drawings or self._decoder.num_pending)

    def _waiting_requests(self) -> list[ImageRequest]:
        return [*(one.request for one in self._waiting), *self._without_adapters.requests()]

    def _advance_adapters(self) -> list[ImageEvent]:
        """Put adapters in place that have been read, and remove those that nobody uses; returns the
        final events of requests whose adapters cannot be loaded."""
        refused = self._without_adapters.advance(self._adapters_in_use, self._queue)
        if not self._has_requests():
            self._adapters.wait(_DECODE_WAIT_S)
        return [event for request, error in refused for event in rejection(request, error)]

    def _adapters_in_use(self) -> set[str]:
        """The keys of the adapters in place that unfinished requests use."""
        requests = [waiting.request for waiting in self._waiting]
        requests += [drawing.request for drawing in self._drawings.values()]
        return {name for request in requests for name in request.adapter_names}

    def _admit(self) -> list[ImageEvent]:
        """Prepare waiting requests in their order, as long as images fit, and only for so short a
        time that running ones are not held up for long."""
        events: list[ImageEvent] = []
        most_s = max(_ADMIT_S, _ADMIT_SHARE_OF_STEP * self._step_time_s)
        until_s = time.perf_counter() + most_s
        while self._waiting and (not events or time.perf_counter() < until_s):
            request = self._waiting.peek().request
            room = self._limits.max_num_images - len(self._drawings)
            if self._drawings and request.params.n > room:
                break
            self._waiting.pop()
            events += self._prepare(request)
        return events

    def _prepare(self, request: ImageRequest) -> list[ImageEvent]:
        try:
            return self._start(request)
        except Exception as error:
            self.abort(request.request_id)
            return rejection(request, answer_for(error, request.request_id))

    def _start(self, request: ImageRequest) -> list[ImageEvent]:
        drawings = self._source.create(request)
        queue_time_s = max(0.0, time.time() - request.arrival_time_s)
        phases = request.phases
        events = [
            self._event(drawing, queue_time_s=queue_time_s, phases=phases) for drawing in drawings
        ]
        for drawing in drawings:
            self._totals.encode_time_s += drawing.encode_time_s
            self._drawings[drawing.drawing_id] = drawing
            self._scheduler.add(self._entry(drawing))
        return events

    def _decide(self) -> tuple[StepDecision | None, list[ImageEvent]]:
        """The next call, and the events of drawings for which no call can be decided."""
        try:
            return self._scheduler.schedule(), []
        except Exception as error:
            raise_if_poisoned(error)
            drawings = [drawing for drawing in self._drawings.values() if not drawing.finished]
            events = self._each(drawings, self._check_schedulable)
            # No single drawing is to blame, so all fail instead of being tried forever.
            return None, events or self._fail_each(drawings, error)

    def _run(self, decision: StepDecision) -> list[ImageEvent]:
        """Run one call; returns the events of each of its drawings."""
        drawings = [self._drawings[drawing_id] for drawing_id in decision.drawing_ids]
        started_s = time.perf_counter()
        most_at_once = 1 if self._limits.deterministic else len(drawings)
        events: list[ImageEvent] = []
        for start in range(0, len(drawings), most_at_once):
            events += self._compute(drawings[start : start + most_at_once])
        elapsed_s = time.perf_counter() - started_s
        self._scheduler.commit(decision, elapsed_s)
        drawings = [drawing for drawing in drawings if drawing.drawing_id in self._drawings]
        self._count_step(drawings, decision.num_rows, elapsed_s)
        for drawing in drawings:
            drawing.stage_time_s += elapsed_s
        events += self._each(drawings, self._after_step)
        return events + [self._event(s) for s in drawings if s.drawing_id in self._drawings]

    def _compute(self, drawings: Sequence[Drawing]) -> list[ImageEvent]:
        """Run one call and advance each drawing. If the call fails, each half is tried again, down
        to the drawings that fail alone. Returns the events of failed drawings."""
        try:
            stages = [drawing.stage for drawing in drawings]
            outcomes = stages[0].compute(stages)
            taken = zip(drawings, outcomes, strict=True)
            outcome_of = {drawing.drawing_id: outcome for drawing, outcome in taken}
        except Exception as error:
            if len(drawings) == 1:
                return self._fail_each(drawings, error)
            raise_if_poisoned(error)
            log.warning(
                "a step failed; its images are tried again in smaller groups",
                stage=stages[0].name,
                error=type(error).__name__,
                num_images=len(drawings),
            )
            half = len(drawings) // 2
            return self._compute(drawings[:half]) + self._compute(drawings[half:])
        return self._each(
            drawings, lambda drawing: drawing.stage.advance(outcome_of[drawing.drawing_id])
        )

    def _each(
        self, drawings: Sequence[Drawing], work: Callable[[Drawing], object]
    ) -> list[ImageEvent]:
        """Do something with each drawing. Drawings for which it fails end; returns their events."""
        events: list[ImageEvent] = []
        for drawing in drawings:
            try:
                work(drawing)
            except Exception as error:
                events += self._fail_each([drawing], error)
        return events

    def _check_schedulable(self, drawing: Drawing) -> None:
        alone = StepScheduler(self._limits.max_num_rows, self._limits.max_batch_pixels)
        alone.add(self._entry(drawing))
        alone.schedule()

    def _after_step(self, drawing: Drawing) -> None:
        if drawing.finished:
            self._scheduler.remove(drawing.drawing_id)
            self._end_stage(drawing)
            return
        self._scheduler.update(drawing.drawing_id, num_rows=drawing.stage.num_rows)
        if drawing.preview_due() and (work := drawing.stage.preview()) is not None:
            index = len(drawing.preview_steps)
            drawing.preview_steps.append(drawing.step)
            self._decoder.submit((drawing.drawing_id, index), work)

    def _end_stage(self, drawing: Drawing) -> None:
        """Have the picture decoded, or continue with what was drawn."""
        if drawing.next_pass is not None and not drawing.next_pass.needs_picture:
            self._go_on(drawing, None)
        else:
            key = _RESULT if drawing.next_pass is None else _BETWEEN
            self._decoder.submit((drawing.drawing_id, key), drawing.stage.result())

    def _go_on(self, drawing: Drawing, picture: Pixels | None) -> None:
        """Begin a drawing's next pass, which takes turns like any other drawing."""
        started_s = time.perf_counter()
        drawing.go_on(picture)
        elapsed_s = time.perf_counter() - started_s
        drawing.encode_time_s += elapsed_s
        self._totals.encode_time_s += elapsed_s
        self._scheduler.add(self._entry(drawing))

    def _collect(self, wait_s: float) -> list[ImageEvent]:
        events: list[ImageEvent] = []
        if self._decoder.num_pending:
            for decoded in self._decoder.collect(wait_s):
                self._totals.decode_time_s += decoded.elapsed_s
                drawing = self._drawings.get(decoded.key[0])
                if drawing is not None:  # decoded pictures of cancelled drawings have no event
                    events += self._take(drawing, decoded)
        return events

    def _take(self, drawing: Drawing, decoded: Decoded) -> list[ImageEvent]:
        """Make the event of one decoded picture."""
        try:
            if decoded.error is not None:
                raise decoded.error
            event = self._decoded_event(drawing, decoded)
        except Exception as error:
            return self._fail_each([drawing], error)
        if event.finish_reason is not None:
            self._drop(drawing)
            self._totals.num_images += 1
        return [event]

    def _decoded_event(self, drawing: Drawing, decoded: Decoded) -> ImageEvent:
        index = decoded.key[1]
        if index == _BETWEEN:
            assert isinstance(decoded.picture, Pixels)
            self._go_on(drawing, decoded.picture)
            return self._event(drawing)
        if index != _RESULT:
            # The drawing has taken more steps since.
            step = drawing.preview_steps[index]
            return self._event(drawing, step=step, preview=decoded.picture, preview_index=index)
        found = decoded.picture
        return self._event(
            drawing,
            image=found.pixels if isinstance(found, Examined) else found,
            examination=found.examination if isinstance(found, Examined) else None,
            finish_reason=FinishReason.STOP,
            warnings=drawing.warnings,
            decode_time_s=decoded.elapsed_s,
        )

    def _fail_each(self, drawings: Sequence[Drawing], error: Exception) -> list[ImageEvent]:
        """End drawings with an error, each with its own reference to the log."""
        events: list[ImageEvent] = []
        for drawing in drawings:
            self._drop(drawing)
            answer = answer_for(error, drawing.request.request_id)
            events += rejection(drawing.request, answer, (drawing.index,))
        return events

    def _drop(self, drawing: Drawing) -> None:
        self._scheduler.remove(drawing.drawing_id)
        self._drawings.pop(drawing.drawing_id, None)

    def _count_step(self, drawings: Sequence[Drawing], num_rows: int, elapsed_s: float) -> None:
        totals = self._totals
        totals.num_steps += 1
        totals.num_rows += num_rows
        totals.num_image_steps += len(drawings)
        totals.megapixel_steps += sum(drawing.stage.num_pixels / 1e6 for drawing in drawings)
        totals.stage_time_s += elapsed_s
        self._step_rows, self._step_time_s = num_rows, elapsed_s

    def _event(self, drawing: Drawing, *, step: int | None = None, **fields: object) -> ImageEvent:
        return ImageEvent(
            request_id=drawing.request.request_id,
            index=drawing.index,
            stage=drawing.stage.name,
            step=drawing.step if step is None else step,
            num_steps=drawing.num_steps,
            seed=drawing.seed,
            num_prompt_tokens=drawing.num_prompt_tokens,
            encode_time_s=drawing.encode_time_s,
            stage_time_s=drawing.stage_time_s,
            **fields,  # type: ignore[arg-type]
        )

    def _entry(self, drawing: Drawing) -> Entry:
        return Entry(
            drawing_id=drawing.drawing_id,
            group=drawing.group,
            num_rows=drawing.stage.num_rows,
            num_pixels=drawing.stage.num_pixels,
            num_steps=drawing.stage.num_steps,
            priority=self._policy.priority(drawing.request),
        )
