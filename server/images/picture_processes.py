"""The processes that read strangers' pictures, a few at once."""

import asyncio
import os
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog

from engine.errors import EngineError, InternalError, InvalidParameter
from engine.helper_process import HelperLost, HelperProcess
from engine.own_packages import module_command
from server.images.picture_wire import Answer, Decoded, Question, Refused, Texts

_MOST_PROCESSES = 4
_BASE_MEMORY_BYTES = 256 << 20
"""Beside what its pixels take: a file is there once or twice."""
_BYTES_PER_PIXEL = 32
"""That decoding takes at most: of 16 bits a channel, with a profile and transparency."""
_WALL_PER_CPU = 5
"""How many times as long as its processor time an answer may take: the machine may be busy."""
_GRACE_S = 1.0
"""For the picture of a client that has left. To end it at once would cost the next one a start."""

_read_answer = msgspec.json.Decoder(Answer).decode

log = structlog.get_logger(__name__)


class PictureProcesses:
    """Each of them is started when all others are at work, and stays. `read` for event loops only,
    of which there may be several.

    Args:
        max_pixels: of a picture; the memory of a process depends on it.
    """

    def __init__(self, max_pixels: int) -> None:
        # Half of the processors at most, but two: one file must not hold up all others.
        num = max(2, min(_MOST_PROCESSES, (os.cpu_count() or 1) // 2))
        memory_bytes = _BASE_MEMORY_BYTES + max_pixels * _BYTES_PER_PIXEL
        command = module_command("server.images.picture_child", str(memory_bytes))
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="pictures")
        # The one that was used last comes first.
        self._idle: queue.LifoQueue[HelperProcess] = queue.LifoQueue()
        self._processes = [HelperProcess(command) for _ in range(num)]
        for process in self._processes:
            self._idle.put(process)

    async def read(self, question: Question, data: bytes) -> tuple[Decoded | Texts, bytes]:
        """What the file is, and the pixels that follow. Whoever waits may be cancelled: work that
        has not begun is dropped then, other work ends within a second.

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
        """End the processes, also those at work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()


class _Job:
    """One question on its way to an answer."""

    def __init__(
        self, idle: "queue.LifoQueue[HelperProcess]", question: Question, data: bytes
    ) -> None:
        self._idle = idle
        self._question = question
        self._data = data
        self._process: HelperProcess | None = None
        self._lock = threading.Lock()
        """So that no process is ended over a job that it has just been given."""

    def kill(self) -> None:
        """End the process that works on it, if one does."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def run(self) -> tuple[Decoded | Texts, bytes]:
        """In a thread of the pool."""
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
            head, pixels = process.ask(question, self._data, question.cpu_s * _WALL_PER_CPU)
            answer = _read_answer(head)
        except HelperLost as lost:
            raise _explain(question, lost) from None
        except msgspec.DecodeError:
            process.close()
            raise InternalError("the process that reads pictures gave no answer") from None
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
            f"{question.param} takes more than {limit} to decode; save the picture anew, or scale "
            "it down",
            param=question.param,
        )
    return InvalidParameter(
        f"{question.param} cannot be decoded: the library that reads such files failed over it; "
        "save the picture anew",
        param=question.param,
    )
