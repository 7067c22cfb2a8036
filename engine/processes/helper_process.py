"""A process that does dangerous work and may crash. Untrusted pictures, templates and grammars can
make a library loop, grow or crash. Such a process limits itself (`engine.processes.process_limits`)
and can be killed without harm to anything else; the next question starts a new one. Its standard
input is a socket, and it ends when the socket is closed.
"""

import asyncio
import contextlib
import io
import socket
import subprocess
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from engine.processes.fair_patience import Patience, fair_timeout
from engine.processes.helper_child import FRAME, Bytes, read_frame

_READ_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_MAX_HEAD_BYTES = 1 << 27
"""The largest head of an answer: the longest text that a template may write, at 6 bytes per
character in JSON."""

_FAULTS = (OSError, EOFError, MemoryError, OverflowError, msgspec.DecodeError)
"""The errors that the end of a process, or an invalid answer, causes here."""


class HelperLost(Exception):
    """The process ended while it worked on a question.

    Attributes:
        exit_code: the process's exit code, or its negative signal.
        is_late: it was killed because the answer took too long.
    """

    def __init__(self, exit_code: int, *, is_late: bool) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code
        self.is_late = is_late


class RunningHelper:
    """A process that was started, and the socket to it. It ends when this object is garbage.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self.socket.close)
            self.socket.setblocking(False)
            for end in (self.socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL
            )
            undo.pop_all()
        self._num_asked = 0
        self._received = bytearray()
        self._end = weakref.finalize(self, _end, self._process, self.socket)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process. Any thread may do so."""
        self._process.kill()

    def end(self) -> int:
        """End the process and return its exit code, or the negative signal. Idempotent."""
        self._end()
        return self._process.wait()

    def ask(self, head: bytes, body: Bytes, wall_s: float) -> tuple[bytes, bytes]:
        """Ask a question and return the answer's head and body.

        Raises:
            HelperLost: the process ended, or was killed because its answer is late or invalid.
        """
        patience = Patience(self.socket.settimeout, wall_s)
        try:
            for part in (self._frame(head, len(body)), body):
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[patience.wait(partial(self.socket.send, rest)) :]
            answer = read_frame(io.BufferedReader(_Answers(self.socket, patience)))
            if answer[0] != self._num_asked:
                raise EOFError
            return answer[1:]
        except _FAULTS as error:
            raise self._lost(error) from None

    async def ask_all(
        self, heads: Sequence[bytes], wall_s: float, give: Callable[[bytearray], None]
    ) -> None:
        """Ask questions without bodies, and give the heads of the answers in the same order. Each
        answer may take `wall_s`.

        Raises:
            HelperLost: the process ended, or was killed because an answer is late or invalid.
        """
        first = self._num_asked + 1
        frames = b"".join(map(self._frame, heads))
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(self.socket, frames))
        try:
            try:
                for number in range(first, first + len(heads)):
                    async with fair_timeout(wall_s):
                        head = await self._receive(number)
                    give(head)
            finally:  # before the socket is closed, whose number another one may get
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except _FAULTS as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> HelperLost:
        return HelperLost(self.end(), is_late=isinstance(error, TimeoutError))

    def _frame(self, head: bytes, body_bytes: int = 0) -> bytes:
        self._num_asked += 1
        return FRAME.pack(self._num_asked, len(head), body_bytes) + head

    async def _receive(self, number: int) -> bytearray:
        await self._fill(FRAME.size)
        answered, size, _ = FRAME.unpack_from(self._received)
        if answered != number or size > _MAX_HEAD_BYTES:
            raise EOFError
        end = FRAME.size + size
        await self._fill(end)
        head = self._received[FRAME.size : end]
        del self._received[:end]
        return head

    async def _fill(self, num_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        while len(self._received) < num_bytes:
            piece = await loop.sock_recv(self.socket, _READ_BYTES)
            if not piece:
                raise EOFError
            self._received += piece


class HelperProcess:
    """A process that is started when it is first needed, and again after it was lost. One thread at
    a time may use it, but any thread may kill it. It ends when this object is garbage."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._running: RunningHelper | None = None

    def running(self) -> RunningHelper:
        """Return the process, which is started if none runs. Raises OSError if that fails."""
        if self._running is None or not self._running.is_alive:
            self.close()
            self._running = RunningHelper(self._command)
        return self._running

    def kill(self) -> None:
        """Kill the process if it runs; a waiting `ask` then raises `HelperLost`."""
        if self._running is not None:
            self._running.kill()

    def close(self) -> None:
        """End the process if it runs. Idempotent."""
        if self._running is not None:
            self._running.end()


class _Answers(io.RawIOBase):
    """What arrives on a socket while there is patience."""

    def __init__(self, connection: socket.socket, patience: Patience) -> None:
        self._socket = connection
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._patience.wait(partial(self._socket.recv_into, buffer))


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()
