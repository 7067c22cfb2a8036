"""A process that answers questions one after the other and may die over any of them.

Files from strangers, such as pictures, can make a library loop, grow or crash. Such a process
limits itself (`engine.processes.process_limits`) and can be killed without harm to anything else;
the next question starts a new one.

Questions and answers are frames on its standard input and output: a head in JSON, and bytes that
are never copied on the way. The process ends when its input does.
"""

import contextlib
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from engine.errors import InternalError

_SIZES = struct.Struct("<IQ")
"""The sizes in bytes of a frame's head and body."""
_PIPE_BYTES = 1 << 20
_OUTPUT, _ERRORS = 1, 2

Bytes = bytes | bytearray | memoryview


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


class HelperProcess:
    """A process that is started by the first question, and again after a loss. One thread at a time
    may ask and close; any thread may kill. It ends when this object is garbage."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], None] = lambda: None

    def ask(self, head: Any, body: Bytes, wall_s: float) -> tuple[bytes, bytes]:
        """Ask a question; returns the answer's head, in JSON, and its body.

        Raises:
            HelperLost: the process ended, or was killed because it did not answer in time.
            InternalError: the process cannot be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end_late() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(wall_s, end_late)
        timer.start()
        try:
            write_frame(process.stdin, msgspec.json.encode(head), body)
            return read_frame(process.stdout)
        except (OSError, EOFError, MemoryError):
            self.close()
            raise HelperLost(process.wait(), is_late=late.is_set()) from None
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Kill the process: a waiting `ask` raises `HelperLost`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process if it runs. Idempotent."""
        self._process = None
        self._end()

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                self._command,
                stdin=pipe,
                stdout=pipe,
                pipesize=_PIPE_BYTES,
            )
        except OSError as error:
            raise InternalError("a helper process cannot be started") from error
        self._process = process
        self._end = weakref.finalize(self, _end, process)
        return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # from data that could not be written any more
            pipe.close()


def write_frame(file: IO[bytes], head: bytes, body: Bytes) -> None:
    """Write a frame. Raises OSError if nobody reads."""
    file.write(_SIZES.pack(len(head), len(body)) + head)
    file.write(body)
    file.flush()


def read_frame(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Read the next frame's head and body. Raises EOFError if there is none."""
    head_bytes, body_bytes = _SIZES.unpack(_read(file, _SIZES.size))
    return _read(file, head_bytes), _read(file, body_bytes)


def _read(file: IO[bytes], num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


def own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The helper process's pipes for questions and answers. From now on, what libraries print goes
    to standard error."""
    output = os.fdopen(os.dup(_OUTPUT), "wb")
    os.dup2(_ERRORS, _OUTPUT)
    return sys.stdin.buffer, output
