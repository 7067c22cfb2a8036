"""The processes that decode clients' pictures, a few at a time."""

import asyncio
import os
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog

from engine.errors import EngineError, InternalError, InvalidParameter
from engine.processes.helper_process import HelperLost, HelperProcess
from engine.processes.own_packages import module_command
from server.images.picture_wire import Answer, Decoded, Question, Refused, Texts

_MOST_PROCESSES = 4
_BASE_MEMORY_BYTES = 256 << 20
"""Memory besides that of the pixels: the file is there once or twice."""
_BYTES_PER_PIXEL = 32
"""The most memory that decoding takes per pixel: with 16 bits a channel, a profile and
transparency."""
_WALL_PER_CPU = 5
"""Seconds that an answer may take per second of processor time: the machine may be busy."""
_GRACE_S = 1.0
"""Seconds to finish the picture of a client that has left. Ending it at once would cost the next
picture a process start."""

_read_answer = msgspec.json.Decoder(Answer).decode

log = structlog.get_logger(__name__)


class PictureProcesses:
    """A pool of processes. A process is started when all others are busy, and stays. `read` is for
    event loops only, of which there may be several.

    Args:
        max_pixels: limit of a picture; the memory of a process depends on it.
    """

    def __init__(self, max_pixels: int) -> None:
        # At most half of the processors, but at least two processes: one file must not hold up all
        # others.
        num = max(2, min(_MOST_PROCESSES, (os.cpu_count() or 1) // 2))
        memory_bytes = _BASE_MEMORY_BYTES + max_pixels * _BYTES_PER_PIXEL
        command = module_command("server.images.picture_child", str(memory_bytes))
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="pictures")
        # The process that was used last comes first.
        self._idle: queue.LifoQueue[HelperProcess] = queue.LifoQueue()
        self._processes = [HelperProcess(command) for _ in range(num)]
        for process in self._processes:
            self._idle.put(process)

    async def read(self, question: Question, data: bytes) -> tuple[Decoded | Texts, bytes]:
        """The facts about a file, and its pixels. The caller may be cancelled: work that has not
        begun is dropped then, other work ends within a second.

        Raises:
            InvalidParameter: the file cannot be used, or takes too much time or memory.
            InternalError: the process cannot be started, or ended for another reason.
        """
        job = _Job(self._idle, question, data)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, job.run)
        except asyncio.CancelledError:
            loop.call_later(_GRACE_S, job.kill)
            raise

    def close(self) -> None:
        """End the processes, including busy ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()


class _Job:
    """A question on its way to an answer."""

    def __init__(
        self, idle: "queue.LifoQueue[HelperProcess]", question: Question, data: bytes
    ) -> None:
        self._idle = idle
        self._question = question
        self._data = data
        self._process: HelperProcess | None = None
        self._lock = threading.Lock()
        """Keeps `kill` from ending a process that has moved on to another job."""

    def kill(self) -> None:
        """End the process that works on this job, if there is one."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def run(self) -> tuple[Decoded | Texts, bytes]:
        """Answer the question; runs in a thread of the pool."""
        self._process = process = self._idle.get()
        try:
            return self._ask(process)
        finally:
            with self._lock:
                self._process = None
            self._idle.put(process)

    def _ask(self, process: HelperProcess) -> tuple[Decoded | Texts, bytes]:
        question = self._question
        try:
            running = process.running()
        except OSError as error:
            raise InternalError("a helper process cannot be started") from error
        try:
            head, pixels = running.ask(
                msgspec.json.encode(question), self._data, question.cpu_s * _WALL_PER_CPU
            )
            answer = _read_answer(head)
        except HelperLost as lost:
            raise _explain(question, lost) from None
        except msgspec.DecodeError:
            running.end()
            raise InternalError(
                "the process that reads pictures gave no valid answer; send the request again"
            ) from None
        if isinstance(answer, Refused):
            raise answer.failure.error()
        return answer, pixels


def _explain(question: Question, lost: HelperLost) -> EngineError:
    log.warning(
        "the process that reads pictures ended",
        field=question.param,
        exit_code=lost.exit_code,
        is_late=lost.is_late,
    )
    if lost.is_late or lost.exit_code == -signal.SIGXCPU:
        limit = (
            f"{question.cpu_s * _WALL_PER_CPU} s"
            if lost.is_late
            else f"{question.cpu_s} s of processor time"
        )
        return InvalidParameter(
            f"{question.param} takes more than {limit} to decode, the limit; save the picture "
            "again, or scale it down",
            param=question.param,
        )
    return InvalidParameter(
        f"{question.param} cannot be decoded: the library for such files failed on it; save the "
        "picture again",
        param=question.param,
    )
