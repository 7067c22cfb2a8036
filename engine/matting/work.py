"""`MattingWork` removes backgrounds from pictures, which take turns between pauses.

A step advances one picture to its next pause: tenths of a second, seconds in the worst case.
Pictures in progress share the time, so that a small one does not wait for a large one. Pictures
that do not fit into the memory wait.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from engine.contract.matte import MattingEvent, MattingRequest, MattingStats
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter
from engine.matting.job import Job
from engine.matting.network import Network
from engine.matting.trimap import Trimap, check_trimap
from engine.pictures.arrays import array_of
from engine.turns.engine import TurnLimits, TurnsEngine
from engine.turns.queue import WaitingQueue
from engine.turns.work import Pending, Turn, Work

WORK_BYTES = 1 << 30
"""The most memory of all pictures in progress, unless a single picture takes more."""
BYTES_PER_PIXEL = 48
"""The bytes per pixel of a large picture: itself, its trimap, alpha, colours and the answer."""
SOLVER_BYTES = 640 << 20
SOLVER_PIXELS = 1_000_000
"""A picture with this many pixels or more may need all of `SOLVER_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingLimits(TurnLimits):
    """The limits of a matting engine."""

    max_num_images: int
    """The most pictures in progress at once."""


@dataclass(slots=True, eq=False, kw_only=True)
class PendingPicture(Pending):
    """A request that waits or is in progress. Its first turn begins the work; each further turn
    ends at the next pause, which adds a turn, or with the result."""

    request: MattingRequest
    num_turns: int = 2
    job: Job
    used_s: float = 0.0
    """The time of its turns, counted from the time that the others had when its work began."""
    shown_stage: str = ""
    """The newest stage that an event has reported."""

    @property
    def order(self) -> int:
        return round(1e6 * self.used_s)

    def close(self) -> None:
        self.job.work.close()

    @property
    def num_bytes(self) -> int:
        """The approximate memory of the picture in progress."""
        num_pixels = self.request.image.width * self.request.image.height
        solver = SOLVER_BYTES * min(1.0, num_pixels / SOLVER_PIXELS)
        return int(BYTES_PER_PIXEL * num_pixels + solver)


MattingEngine = TurnsEngine[MattingRequest, MattingEvent, MattingStats]
MattingTurn = Turn[PendingPicture]
Clock = Callable[[], float]


class MattingWork(Work[MattingRequest, PendingPicture, None, MattingEvent, MattingStats]):
    """The work of a `MattingEngine`."""

    stats_type = MattingStats
    items = "pictures"

    def __init__(
        self, network: Network, limits: MattingLimits, clock: Clock = time.perf_counter
    ) -> None:
        self._network = network
        self._limits = limits
        self._clock = clock

    def check(self, request: MattingRequest) -> None:
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

    def pending(self, request: MattingRequest) -> PendingPicture:
        return PendingPicture(request=request, job=Job(request, self._network))

    def choose(self, queue: WaitingQueue[PendingPicture]) -> Iterator[PendingPicture]:
        """Yield the pictures that begin, then the one in progress that has had the least time."""
        for pending in [one for one in queue if not one.is_begun]:
            begun = [other for other in queue if other.is_begun]
            if not self._has_room(pending, begun):
                break
            pending.used_s = min((other.used_s for other in begun), default=0.0)
            yield pending
        yield from [one for one in queue if one.is_begun][:1]

    def _has_room(self, pending: PendingPicture, begun: Sequence[PendingPicture]) -> bool:
        if not begun:
            return True
        num_bytes = pending.num_bytes + sum(other.num_bytes for other in begun)
        return len(begun) < self._limits.max_num_images and num_bytes <= WORK_BYTES

    def compute(self, turns: Sequence[MattingTurn]) -> list[None]:
        """Do nothing, as pictures have no work in common."""
        return [None] * len(turns)

    def finish(self, turn: MattingTurn, output: None) -> list[MattingEvent]:
        """Begin a picture, or advance it to its next pause or its end."""
        pending, job = turn.pending, turn.pending.job
        request_id = pending.request.request_id
        if turn.queue_time_s is not None:
            return [MattingEvent(request_id=request_id, queue_time_s=turn.queue_time_s)]
        started_s = self._clock()
        try:
            next(job.work)
        except StopIteration as end:
            event: MattingEvent = end.value
            return [event]
        pending.used_s += self._clock() - started_s
        pending.num_turns += 1
        if job.stage == pending.shown_stage:
            return []
        pending.shown_stage = job.stage
        return [MattingEvent(request_id=request_id, stage=job.stage, progress=job.progress)]

    def count(
        self, stats: MattingStats, turns: Sequence[MattingTurn], events: Sequence[MattingEvent]
    ) -> MattingStats:
        if not any(event.finish_reason is FinishReason.STOP for event in events):
            return stats
        pending = turns[-1].pending
        image = pending.request.image
        return replace(
            stats,
            num_images=stats.num_images + 1,
            num_pixels=stats.num_pixels + image.width * image.height,
            num_unknown_pixels=stats.num_unknown_pixels + pending.job.num_unknown,
        )
