"""Responses in the background: clients fetch and cancel them by their ids."""

import asyncio
from dataclasses import dataclass, replace

import structlog

from engine.errors import RequestAborted
from server.http.errors import log_unexpected
from server.http.owner import Owner
from server.protocol.responses import Response
from server.responses.shape import ResponseShape
from server.text.chat_reply import ChatReply

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class BackgroundJob:
    """A response in the making, which is stored at its end."""

    shape: ResponseShape
    reply: ChatReply
    owner: Owner | None
    task: "asyncio.Task[None] | None" = None

    def response(self) -> Response:
        """The response so far: queued until something has been written."""
        response = replace(self.shape.response)
        if response.status == "in_progress" and not self.reply.generation.usage().completion_tokens:
            response.status = "queued"
        return response


class BackgroundJobs:
    """The background responses that are running, by id. Event loop only."""

    def __init__(self) -> None:
        self._live: dict[str, BackgroundJob] = {}

    def start(self, shape: ResponseShape, reply: ChatReply, owner: Owner | None) -> BackgroundJob:
        """Start writing the reply; it is closed at its end."""
        job = BackgroundJob(shape, reply, owner)
        self._live[shape.response.id] = job
        job.task = asyncio.create_task(self._run(job))
        return job

    def get(self, response_id: str, owner: Owner | None) -> BackgroundJob | None:
        """The job of that id, if it is running and belongs to that owner."""
        job = self._live.get(response_id)
        return job if job is not None and job.owner == owner else None

    async def cancel(self, job: BackgroundJob) -> None:
        """End a job; later lookups find it cancelled. Idempotent."""
        assert job.task is not None
        job.task.cancel()
        await asyncio.wait({job.task})
        # A task that had not begun did not end its job.
        await self._end(job, RequestAborted("the response was cancelled"))

    async def aclose(self) -> None:
        """End all jobs."""
        await asyncio.gather(*(self.cancel(job) for job in list(self._live.values())))

    async def _run(self, job: BackgroundJob) -> None:
        try:
            await job.reply.whole()
        except asyncio.CancelledError:
            await self._end(job, RequestAborted("the response was cancelled"))
        except Exception as error:
            log_unexpected(error)
            await self._end(job, error)
        else:
            await self._end(job, None)

    async def _end(self, job: BackgroundJob, error: BaseException | None) -> None:
        response = job.shape.response
        if self._live.pop(response.id, None) is None:
            return
        if error is not None:
            job.shape.fail(error)
        await job.reply.generation.aclose()
        log.debug(
            "background response", id=response.id, status=response.status, **job.reply.log_fields()
        )
