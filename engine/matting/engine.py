"""The matting engine, which steps over pictures in progress.

A step advances one picture from one pause to the next: tenths of a second, seconds in the worst
case. Pictures in progress share the time, so that a small one does not wait for a large one.
Pictures that do not fit into the memory wait.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.contract.matte import MattingEvent, MattingRequest, MattingStats
from engine.contract.rejection import rejection
from engine.contract.settings import Policy
from engine.errors import EngineError, InvalidParameter, QueueFull
from engine.matting.arrays import array_of
from engine.matting.job import Job
from engine.matting.network import Network
from engine.matting.trimap import Trimap, check_trimap
from engine.runtime.fault import answer_for
from engine.scheduling.policy import create_policy
from engine.scheduling.queue import WaitingQueue

WORK_BYTES = 1 << 30
"""The most memory of all pictures in progress, unless a single picture takes more."""
BYTES_PER_PIXEL = 48
"""The bytes per pixel of a large picture: itself, its trimap, alpha, colours and the answer."""
SOLVER_BYTES = 450 << 20
SOLVER_PIXELS = 1_000_000
"""A picture with this many pixels or more may need all of `SOLVER_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingLimits:
    """The limits of the engine."""

    max_num_images: int
    """The most pictures in progress at once."""
    max_num_queued: int
    scheduling_policy: Policy = "fcfs"


@dataclass(slots=True, eq=False)
class _Place:
    """A request that waits or is in progress."""

    rank: tuple[int, ...]
    """The rank of its next turn."""
    request: MattingRequest
    job: Job | None = None
    used_s: float = 0.0
    """The time of its turns, counted from the time that the others had when its work began."""
    shown_stage: str = ""
    """The newest stage that an event has reported."""

    @property
    def num_bytes(self) -> int:
        return work_bytes(self.request.image.width * self.request.image.height)


def work_bytes(num_pixels: int) -> int:
    """The approximate memory of a picture in progress, given its number of pixels."""
    solver = SOLVER_BYTES * min(1.0, num_pixels / SOLVER_PIXELS)
    return int(BYTES_PER_PIXEL * num_pixels + solver)


class MattingEngine:
    """An `engine.worker.stepping.SteppingEngine` for mattes."""

    def __init__(
        self,
        network: Network,
        limits: MattingLimits,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._network = network
        self._clock = clock
        self._limits = limits
        self._policy = create_policy(limits.scheduling_policy)
        self._waiting: WaitingQueue[_Place] = self._policy.create_queue()
        self._working: WaitingQueue[_Place] = self._policy.create_queue()
        self._arrivals = itertools.count()
        self._stats = MattingStats()

    def add(self, request: MattingRequest) -> None:
        """Queue a request.

        Raises:
            InvalidParameter: the trimap lacks subject or background, or a box or point is outside.
            QueueFull: too many pictures wait already.
        """
        _check(request)
        if len(self._waiting) >= self._limits.max_num_queued:
            raise QueueFull(
                f"{len(self._waiting)} pictures are waiting; the limit is "
                f"{self._limits.max_num_queued}; try again later"
            )
        rank = self._policy.rank(request, next(self._arrivals))
        self._waiting.push(_Place(rank, request))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, between two pauses if it is in progress; unknown ids are ignored."""
        for queue in (self._waiting, self._working):
            for place in [p for p in queue if p.request.request_id == request_id]:
                queue.remove(place)
                if place.job is not None:
                    place.job.work.close()

    def has_work(self) -> bool:
        """Whether pictures wait or are in progress."""
        return bool(self._waiting) or bool(self._working)

    def step(self) -> tuple[list[MattingEvent], MattingStats]:
        """Advance the picture whose turn it is to its next pause."""
        started_s = self._clock()
        events = self._begin_what_fits()
        if self._working:
            events += self._advance(self._working.pop())
        self._stats = replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            step_time_s=self._clock() - started_s,
        )
        return events, self.stats()

    def stats(self) -> MattingStats:
        """The current statistics."""
        return replace(self._stats, num_running=len(self._working), num_waiting=len(self._waiting))

    def reset_totals(self) -> None:
        """Reset the totals, for example after a trial."""
        self._stats = MattingStats()

    def shutdown(self) -> None:
        """Do nothing, as only the network is held."""

    def _queue_for_turn(self, place: _Place) -> None:
        """Queue a picture for a turn: the one with least time goes first, among equals the first to
        come."""
        microseconds = round(1e6 * place.used_s)
        place.rank = self._policy.rank(place.request, microseconds << 64 | next(self._arrivals))
        self._working.push(place)

    def _begin_what_fits(self) -> list[MattingEvent]:
        events: list[MattingEvent] = []
        num_bytes = sum(place.num_bytes for place in self._working)
        while self._waiting and len(self._working) < self._limits.max_num_images:
            place = self._waiting.peek()
            num_bytes += place.num_bytes
            if self._working and num_bytes > WORK_BYTES:
                break
            self._waiting.pop()
            place.job = Job(place.request, self._network)
            place.used_s = min((other.used_s for other in self._working), default=0.0)
            self._queue_for_turn(place)
            queue_time_s = max(0.0, time.time() - place.request.arrival_time_s)
            events.append(
                MattingEvent(
                    request_id=place.request.request_id,
                    queue_time_s=queue_time_s,
                )
            )
        return events

    def _advance(self, place: _Place) -> list[MattingEvent]:
        """Give a picture one turn; then it is queued again, or is finished."""
        job = place.job
        assert job is not None
        started_s = self._clock()
        try:
            next(job.work)
        except StopIteration as end:
            event: MattingEvent = end.value
            self._count(place, job)
            return [event]
        except Exception as error:
            return _failed(place.request, answer_for(error, place.request.request_id))
        place.used_s += self._clock() - started_s
        self._queue_for_turn(place)
        if job.stage == place.shown_stage:
            return []
        place.shown_stage = job.stage
        return [
            MattingEvent(
                request_id=place.request.request_id, stage=job.stage, progress=job.progress
            )
        ]

    def _count(self, place: _Place, job: Job) -> None:
        image = place.request.image
        before = self._stats
        self._stats = replace(
            before,
            num_images=before.num_images + 1,
            num_pixels=before.num_pixels + image.width * image.height,
            num_unknown_pixels=before.num_unknown_pixels + job.num_unknown,
        )


def _check(request: MattingRequest) -> None:
    image = request.image
    if request.trimap is not None:
        if (request.trimap.width, request.trimap.height) != (image.width, image.height):
            raise InvalidParameter(
                f"the trimap has {request.trimap.width}x{request.trimap.height} pixels and the "
                f"image has {image.width}x{image.height}; they must have the same size",
                param="trimap",
            )
        check_trimap(Trimap.of(array_of(request.trimap)))
    if request.box is not None:
        left, top, right, bottom = request.box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise InvalidParameter(
                f"box is {list(request.box)}; it must be [left, top, right, bottom] within the "
                f"image's {image.width}x{image.height} pixels",
                param="box",
            )
    for point in request.points:
        if not (0 <= point.x < image.width and 0 <= point.y < image.height):
            raise InvalidParameter(
                f"the point {point.x}, {point.y} is outside the image's "
                f"{image.width}x{image.height} pixels",
                param="points",
            )


def _failed(request: MattingRequest, error: EngineError) -> list[MattingEvent]:
    return rejection(request, error)
