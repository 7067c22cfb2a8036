"""The other side of `engine.processes.helper_process`: answers questions in the helper process.

Its standard input is a socket for questions and answers. Both are frames: a number, a head in JSON,
and bytes that are not copied on the way. An answer has the number of its question.
"""

import contextlib
import io
import os
import struct
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from engine.processes.process_limits import ignore_group_signals

FRAME = struct.Struct("<QIQ")
"""The beginning of a frame: its number, and the sizes in bytes of its head and body."""

Bytes = bytes | bytearray | memoryview

_SOCKET = 0
_READ_BYTES = 1 << 16
_PATIENCE_S = 0.0005


def serve(answer: Callable[[bytes, bytes], tuple[bytes, Bytes]]) -> None:
    """Answer questions until the server hangs up. `answer` takes and returns a frame's parts."""
    ignore_group_signals()
    connection = _Connection()
    questions = io.BufferedReader(connection, _READ_BYTES)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, *question = read_frame(questions)
            connection.give(number, *answer(*question))


def read_frame(file: BinaryIO) -> tuple[int, bytes, bytes]:
    """Return a frame's number, head and body. Raises EOFError if there is none."""
    number, head_bytes, body_bytes = FRAME.unpack(_exactly(file, FRAME.size))
    return number, _exactly(file, head_bytes), _exactly(file, body_bytes)


class _Connection(io.RawIOBase):
    """The socket. Answers are collected for a moment, because every write wakes the server, which
    may take the processor."""

    def __init__(self) -> None:
        self._answers = bytearray()
        self._sent_s = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._send()
        return os.readv(_SOCKET, [buffer])

    def give(self, number: int, head: bytes, body: Bytes) -> None:
        self._answers += FRAME.pack(number, len(head), len(body)) + head
        if len(body) > _READ_BYTES:
            self._send()
            _write(body)
            return
        self._answers += body
        if time.monotonic() - self._sent_s > _PATIENCE_S or len(self._answers) > _READ_BYTES:
            self._send()

    def _send(self) -> None:
        _write(bytes(self._answers))
        self._answers.clear()
        self._sent_s = time.monotonic()


def _write(data: Bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_SOCKET, view) :]


def _exactly(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data
