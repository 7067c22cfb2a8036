"""A model's chat template, rendered in a process of its own that can be killed.

Templates come with checkpoints and are programs: one that loops or fills memory must harm nothing
but itself. Each model has its own process, so a template delays only its own model's chats.
"""

import asyncio
import contextlib
import math
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from engine.errors import (
    ChatTemplateFailed,
    CorruptFile,
    Draining,
    EngineError,
    InvalidParameter,
    QueueFull,
)
from engine.processes.exit_code import cause_of_end
from engine.processes.helper_process import HelperLost, HelperProcess, RunningHelper
from engine.processes.own_packages import module_command
from engine.text.template_wire import (
    OUT_OF_MEMORY,
    Answer,
    Compile,
    Compiled,
    Refused,
    Render,
    Rendered,
    encode,
    read_answer,
)

MAX_SOURCE_CHARS = 1 << 20
"""The most characters of a template; the longest ones of known models have a fiftieth of it."""

_MAX_BATCH = 32
_RETRY_AFTER_S = 5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """The limits of one rendering.

    Attributes:
        cpu_s: processor time; the kernel rounds it up by less than a second.
        wall_s: time from the question to the answer.
        start_s: time for the process to start, which a busy machine and a cold disk delay.
        memory_bytes: address space of the process, which begins with about 30 MiB.
        turn_s: time that a conversation waits for those before it.
    """

    cpu_s: int = 2
    wall_s: float = 10.0
    start_s: float = 60.0
    memory_bytes: int = 512 << 20
    turn_s: float = 30.0


class TemplateProcess:
    """Renders one model's conversations in the order of arrival. One event loop only.

    Conversations that wait together are sent and answered together, because on a busy machine most
    of the time goes into switching between processes.

    Args:
        source, special_tokens: see `ChatTemplate`.

    Raises:
        CorruptFile: the template is too long.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        limits: TemplateLimits = TemplateLimits(),
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise CorruptFile(
                f"the model's chat template has {len(source)} characters; the limit is "
                f"{MAX_SOURCE_CHARS}"
            )
        self._compile = encode(Compile(source, dict(special_tokens)))
        self._limits = limits
        arguments = (str(math.ceil(limits.cpu_s)), str(limits.memory_bytes))
        self._process = HelperProcess(module_command("engine.text.template_child", *arguments))
        self._ready: RunningHelper | None = None
        """The process that has compiled the template."""
        self._waiting: deque[_Job] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Start the process and let it compile the template, so that the first chat need not wait.

        Raises:
            CorruptFile: the template is not valid Jinja, or takes too much time or memory.
        """
        await self._do(None)

    async def render(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> str:
        """Return the prompt's text; `options` are the keyword arguments of `ChatTemplate.render`.

        Raises:
            InvalidParameter: the template refuses the conversation, with its message, or exceeds a
                limit of time or memory.
            ChatTemplateFailed: the process ended for another reason.
            QueueFull: the conversations before it take too long.
        """
        answer = await self._do(_encoded(Render(list(map(dict, messages)), dict(options))))
        if isinstance(answer, Refused):
            raise answer.failure.error()
        if not isinstance(answer, Rendered):
            raise ChatTemplateFailed(
                "the process of the model's chat template answered without a text"
            )
        return answer.text

    def close(self) -> None:
        """End the process. Idempotent."""
        self._is_closed = True
        if self._pump is not None:
            self._pump.cancel()
        self._fail_all(_shutting_down())
        self._process.close()

    async def _do(self, question: bytes | None) -> Answer | None:
        """Wait for a question's answer, or with None until the process is ready."""
        if self._is_closed:
            raise _shutting_down()
        loop = asyncio.get_running_loop()
        job = _Job(question, loop.create_future())
        self._waiting.append(job)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve())
        if question is None:
            return await job.answer
        expiry = loop.call_later(self._limits.turn_s, job.expire, self._limits.turn_s)
        try:
            return await job.answer
        finally:
            expiry.cancel()

    async def _serve(self) -> None:
        """Send waiting questions to the process, a batch at a time, and pass its answers on."""
        batch: list[_Job] = []
        try:
            while self._waiting:
                running = await self._ready_process()
                batch = self._take_batch()
                await self._answer(running, batch)
        except Exception as error:
            # Without a process no waiting conversation can be served.
            self._fail_all(error)
        finally:
            if self._is_closed:  # the current batch waits again
                self._fail_all(_shutting_down())

    def _take_batch(self) -> "list[_Job]":
        batch: list[_Job] = []
        while self._waiting and len(batch) < _MAX_BATCH:
            if batch and (batch[0].is_suspect or self._waiting[0].is_suspect):
                break
            job = self._waiting.popleft()
            if job.question is None:
                job.give(None)
            elif not job.answer.done():  # askers who have left are skipped
                job.is_sent = True
                batch.append(job)
        return batch

    async def _answer(self, running: RunningHelper, batch: "list[_Job]") -> None:
        """Send a batch and pass the answers on.

        If the process ends during the batch, one of the questions without an answer is the cause:
        each of them is then sent alone.
        """
        unanswered = deque(batch)
        questions = [job.question or b"" for job in batch]
        try:
            await self._ask(
                running,
                questions,
                self._limits.wall_s,
                lambda answer: unanswered.popleft().give(answer),
            )
        except EngineError as error:
            if len(batch) == 1:
                batch[0].fail(error)
                unanswered.clear()
            for job in unanswered:
                job.is_suspect = True
        finally:
            for job in unanswered:
                job.is_sent = False
            self._waiting.extendleft(reversed(unanswered))

    async def _ready_process(self) -> RunningHelper:
        """Return the process, once it has compiled the template.

        Raises:
            CorruptFile: it cannot be compiled.
            ChatTemplateFailed: the process cannot be started, or ended.
        """
        running = self._running()
        if running is not self._ready:
            await self._give_template(running)
            self._ready = running
        return running

    async def _give_template(self, running: RunningHelper) -> None:
        answers: list[Answer] = []
        try:
            await self._ask(running, [self._compile], self._limits.start_s, answers.append)
        except InvalidParameter as error:
            raise CorruptFile(
                f"the model's chat template took too long or too much memory to compile; the "
                f"limits are {self._limits.cpu_s} s and {self._limits.memory_bytes >> 20} MiB"
            ) from error
        [answer] = answers
        if isinstance(answer, Refused):
            raise answer.failure.error()
        if isinstance(answer, Compiled) and not answer.is_memory_limited:
            log.warning("this system cannot limit the memory that chat templates take")

    async def _ask(
        self,
        running: RunningHelper,
        questions: Sequence[bytes],
        wall_s: float,
        give: Callable[[Answer], None],
    ) -> None:
        """Ask questions, and give their answers in order. A process that gives none in time is
        replaced.

        Raises:
            InvalidParameter, ChatTemplateFailed: an answer is missing; the message says why.
        """
        try:
            await running.ask_all(questions, wall_s, lambda head: give(read_answer(head)))
        except HelperLost as lost:
            if not self._is_closed:
                with contextlib.suppress(EngineError):  # the next conversation tries again
                    self._running()  # while nobody waits for it
            if lost.is_late:
                raise self._too_long(f"{wall_s:g} s") from None
            raise self._explain(lost.exit_code) from None

    def _running(self) -> RunningHelper:
        try:
            return self._process.running()
        except OSError as error:
            raise ChatTemplateFailed(
                "the process of the model's chat template cannot be started"
            ) from error

    def _fail_all(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().fail(error)

    def _explain(self, exit_code: int) -> EngineError:
        if exit_code == -signal.SIGXCPU:
            return self._too_long(f"{self._limits.cpu_s} s of processor time")
        if exit_code == OUT_OF_MEMORY:
            log.warning("chat template was stopped", reason="too much memory")
            return InvalidParameter(
                "the model's chat template needs too much memory for these messages; shorten them",
                param="messages",
            )
        log.error("the process of the chat template ended", cause=cause_of_end(exit_code))
        return ChatTemplateFailed(
            "the process of the model's chat template ended while it rendered these messages"
        )

    def _too_long(self, time: str) -> InvalidParameter:
        log.warning("chat template was stopped", reason=f"more than {time}")
        return InvalidParameter(
            f"the model's chat template took more than {time} and was stopped; shorten the "
            f"conversation, or serve the model with another template",
            param="messages",
        )


@dataclass(slots=True)
class _Job:
    """A question that waits for its answer. If the asker has left, the answer counts as done."""

    question: bytes | None
    answer: asyncio.Future[Answer | None]
    is_sent: bool = False
    is_suspect: bool = False
    """Whether the process ended while this question was part of its batch."""

    def give(self, answer: Answer | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def expire(self, waited_s: float) -> None:
        if self.is_sent:
            return
        full = QueueFull(
            f"the conversation waited {waited_s:g} s for the model's chat template, which is busy "
            f"with others; try again later"
        )
        full.retry_after_s = _RETRY_AFTER_S
        self.fail(full)


def _shutting_down() -> Draining:
    return Draining("the server, or this model, is shutting down; send the request to another one")


def _encoded(question: Render) -> bytes:
    try:
        return encode(question)
    except (RecursionError, UnicodeEncodeError, TypeError) as error:
        raise InvalidParameter(
            "the messages cannot be given to a chat template: they are nested too deeply or are "
            "not valid Unicode",
            param="messages",
        ) from error
