"""Has structures read by a separate process before the worker compiles them.

A grammar is a small program that a client sends: some make the compiler run for minutes, take
gigabytes or overflow its stack. Each is therefore tried out in a child with tight limits, and the
answer comes back on a socket that belongs to this one question
(`engine.llm.structure.reader_child`).
"""

import contextlib
import dataclasses
import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import structlog

from engine.contract.structure import Structure
from engine.errors import CapacityError, InvalidParameter, InvariantViolation
from engine.llm.structure.reader_child import WALL_SECONDS
from engine.llm.structure.reading import CPU_SECONDS, Reading, too_much
from engine.processes.helper_process import HelperProcess, RunningHelper
from engine.processes.own_packages import module_command

PATIENCE_SECONDS = 2 * WALL_SECONDS
"""How long to wait for an answer; the first structure also waits for the process to start."""

_READ_BYTES = 1 << 16

log = structlog.get_logger(__name__)


class ReaderProcess:
    """The reading process of one model, which any thread may ask. It is started ahead or when first
    needed, and again when it is lost.

    Args:
        path, vocab_size, eos_token_ids: the arguments of `load_token_table`.
    """

    def __init__(self, path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        arguments = (str(path), str(vocab_size), *map(str, eos_token_ids))
        self._process = HelperProcess(
            module_command("engine.llm.structure.reader_child", *arguments)
        )
        self._lock = threading.Lock()
        """Held while a question is handed over, but not while it is answered."""

    def start(self) -> None:
        """Start the process, so that it reads the model's tokens, which takes longer than most
        structures."""
        try:
            with self._lock:
                self._running()
        except CapacityError:
            log.warning("the process that reads structures could not be started yet", exc_info=True)

    def read(self, structure: Structure, cpu_s: float = CPU_SECONDS) -> Reading | None:
        """Read a structure. Returns None if it takes more processor time than `cpu_s`.

        Raises:
            InvalidParameter: it cannot be honoured, or exceeds another limit.
            CapacityError: the process was lost, twice, or cannot be started.
        """
        for _ in range(2):
            answer = self._ask(structure, cpu_s)
            if answer:
                return _reading(structure, answer)
        log.warning("the process that reads structures failed twice", field=structure.param)
        raise CapacityError(
            f"{structure.param} could not be read because the process that reads it failed; send "
            "the request again",
            param=structure.param,
        )

    def close(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            self._process.close()

    def _ask(self, structure: Structure, cpu_s: float) -> dict[str, Any]:
        """Return the answers of the child and the process; empty if they were lost."""
        question = {"structure": dataclasses.asdict(structure), "cpu_s": cpu_s}
        ours, theirs = socket.socketpair()
        with ours:
            with self._lock, theirs:
                running = self._running()
                with contextlib.suppress(OSError):
                    socket.send_fds(running.socket, [b"?"], [theirs.fileno()])
            ours.settimeout(PATIENCE_SECONDS)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                ours.sendall(json.dumps(question).encode())
                ours.shutdown(socket.SHUT_WR)
            answer: dict[str, Any] = {}
            for line in _all_of(ours).splitlines(keepends=True):
                if line.endswith(b"\n"):
                    answer |= json.loads(line)
        if not answer:
            with self._lock:
                running.end()
        return answer

    def _running(self) -> RunningHelper:
        try:
            return self._process.running()
        except OSError as error:
            raise CapacityError(
                "the process that reads structures cannot be started; send the request again"
            ) from error


def _all_of(connection: socket.socket) -> bytes:
    """Receive until the other side is closed or the time is up."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while piece := connection.recv(_READ_BYTES):
            received += piece
    return bytes(received)


def _reading(structure: Structure, answer: dict[str, Any]) -> Reading | None:
    if "digest" in answer and answer["digest"] != structure.digest:
        raise InvariantViolation("the answer to one structure came for another one")
    if "refusal" in answer:
        raise InvalidParameter(answer["refusal"], param=structure.param)
    if "text" in answer:
        return Reading(answer["text"], answer["num_bytes"], answer["seconds"])
    exit_code = answer["exit_code"]
    if exit_code == -signal.SIGPROF:
        return None
    is_slow = exit_code == -signal.SIGALRM
    what = f"more than {WALL_SECONDS:.0f} s" if is_slow else "too much memory or too deep a stack"
    log.warning("a structure could not be read", field=structure.param, exit_code=exit_code)
    raise too_much(structure, what)
