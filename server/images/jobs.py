"""The state of each image request by its id: progress while it runs, the outcome afterwards.

The reply that runs a job updates it; `GET` and `DELETE /v1/images/{id}` read and cancel it. Ids
cannot be guessed, so knowing one is enough to ask. Event loop only.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from engine.contract.draw import ImageEvent, ImageRequest
from engine.contract.operations import DRAW
from engine.errors import EngineError, RequestAborted
from server.http.errors import status_row
from server.http.expiring import ExpiringTable
from server.http.live_requests import Progress
from server.protocol.image_answers import ImageJobAnswer, JobStatus

MAX_ENDED_JOBS = 1024
ENDED_JOB_TTL_S = 3600.0

_LIVE = (JobStatus.QUEUED, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(ImageEvent):
    """What a stage after the drawing did. `step` and `num_steps` count the stage's own work."""

    operation: str
    number: int
    """Number of the stage; the drawing is 0."""


class ImageJob:
    """The progress of one request.

    Args:
        abort: ends it in the engine.
        num_stages: number of stages after the drawing. Each counts as much as the drawing.
    """

    def __init__(
        self,
        request: ImageRequest,
        abort: Callable[[], Awaitable[None]],
        num_stages: int = 0,
    ) -> None:
        self.id = request.request_id
        self.model = request.model
        self.priority = request.priority
        self.status = JobStatus.QUEUED
        self._abort: Callable[[], Awaitable[None]] | None = abort
        self._created = int(time.time())
        self._seed = request.params.seed
        self._steps = [0] * request.params.n
        self._steps_per_image = sum(each.num_steps for each in request.params.passes)
        self._num_finished = 0
        self._num_stages = num_stages
        self._followed = [0.0] * request.params.n
        """Stages after the drawing that are done, of each image."""
        self._operation, self._stage = DRAW.name, 0
        self._error: str | None = None

    @property
    def is_live(self) -> bool:
        return self.status in _LIVE

    def on_event(self, event: ImageEvent) -> None:
        """Record the progress of an image."""
        if not self.is_live:
            return
        self.status = JobStatus.RUNNING
        if isinstance(event, StageEvent):
            self._operation, self._stage = event.operation, event.number
            self._followed[event.index] = event.number - 1 + event.step / event.num_steps
            return
        self._operation, self._stage = DRAW.name, 0
        if event.num_steps:
            self._steps_per_image = event.num_steps
        self._steps[event.index] = max(self._steps[event.index], event.step)
        if event.image is not None:
            self._steps[event.index] = self._steps_per_image
            self._followed[event.index] = self._num_stages
            self._num_finished += 1

    def end(self, error: BaseException | None) -> None:
        """Record that the request is over, with its answer or for that reason. The first end
        counts."""
        if not self.is_live:
            return
        self._abort = None  # it would hold the reply and its pictures as long as this job is known
        if error is None:
            self.status = JobStatus.COMPLETED
        elif isinstance(error, RequestAborted):
            self.status = JobStatus.CANCELLED
        else:
            self.status = JobStatus.FAILED
            shown = isinstance(error, EngineError) and status_row(error).show_message
            self._error = str(error) if shown else "internal error"

    async def cancel(self) -> None:
        """End the request in the engine; its reply ends with `RequestAborted`."""
        abort = self._abort
        if abort is not None:
            self.end(RequestAborted("the request was cancelled"))
            await abort()

    def progress(self) -> Progress:
        """The job's progress, in the form of all requests in flight."""
        return Progress(
            is_begun=self.status is not JobStatus.QUEUED,
            num_results=len(self._steps),
            num_finished=self._num_finished,
            fraction=self._fraction(),
            operation=self._operation,
            stage=self._stage,
        )

    def answer(self, queue_position: int | None) -> ImageJobAnswer:
        """The job as a client reads it."""
        return ImageJobAnswer(
            id=self.id,
            model=self.model,
            created=self._created,
            status=self.status,
            n=len(self._steps),
            num_finished=self._num_finished,
            step=sum(self._steps),
            num_steps=len(self._steps) * self._steps_per_image,
            progress=self._fraction(),
            operation=self._operation,
            stage=self._stage,
            queue_position=queue_position,
            seed=self._seed,
            error=self._error,
        )

    def _fraction(self) -> float:
        if self.status is JobStatus.COMPLETED:
            return 1.0
        done = sum(self._steps) / self._steps_per_image + sum(self._followed)
        return min(1.0, round(done / len(self._steps) / (1 + self._num_stages), 4))


class ImageJobs:
    """All live jobs, and ended ones for a while. The reply that runs a job holds it: if that is
    dropped without an end, as when a client leaves before its response starts, the job is forgotten
    with it."""

    def __init__(self) -> None:
        self._live: WeakValueDictionary[str, ImageJob] = WeakValueDictionary()
        self._ended: ExpiringTable[ImageJob] = ExpiringTable(
            max_items=MAX_ENDED_JOBS, ttl_s=ENDED_JOB_TTL_S
        )

    def add(self, job: ImageJob) -> None:
        self._live[job.id] = job

    def end(self, job: ImageJob, error: BaseException | None) -> None:
        """Record a job's outcome. Idempotent."""
        job.end(error)
        if self._live.pop(job.id, None) is not None:
            self._ended.put(job.id, job)

    def answer(self, image_id: str) -> ImageJobAnswer | None:
        """The state of a job; None if there is none of that id, or it has expired."""
        job = self.get(image_id)
        return None if job is None else job.answer(self._queue_position(job))

    def live(self) -> list[ImageJobAnswer]:
        """The jobs that are not over, the oldest first."""
        return [job.answer(self._queue_position(job)) for job in list(self._live.values())]

    def get(self, image_id: str) -> ImageJob | None:
        return self._live.get(image_id) or self._ended.get(image_id)

    def _queue_position(self, job: ImageJob) -> int | None:
        if job.status is not JobStatus.QUEUED:
            return None
        position = 1
        before = True
        for other in self._live.values():
            if other is job:
                before = False
            elif other.model == job.model and other.status is JobStatus.QUEUED:
                limit = job.priority if before else job.priority - 1
                position += other.priority <= limit
        return position
