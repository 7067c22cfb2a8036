"""The process that reads one model's structures first, each in a child with limits of its own.

`python -m engine.llm.structure.reader_child PATH VOCAB_SIZE [EOS_TOKEN_ID ...]`, started by
`engine.llm.structure.reader_process`. Its standard input is a socket that passes another socket for
each structure. A forked child reads the question from that socket and writes the answer to it; then
this process adds the child's exit code. An answer can therefore reach only the sender of its
question, and a structure that takes too much ends only its own child. The process ends when its
standard input does.
"""

import contextlib
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.contract.structure import Structure, StructureKind
from engine.errors import EngineError
from engine.llm.structure.grammar_text import grammar_text
from engine.llm.structure.matcher import matcher_of, refusal
from engine.llm.structure.token_table import TokenTable, load_token_table
from engine.llm.structure.trial_texts import problem_of
from engine.processes.process_limits import address_space, ignore_group_signals, limit_more_memory

WALL_SECONDS = 30.0
"""The wall time for one structure, even on a busy machine."""
MEMORY_BYTES = 256 << 20
"""The address space for one structure, beyond what the process has before. Accepted structures were
measured to need at most 35 MB."""
STACK_BYTES = 4 << 20
"""The stack of a child, half of what the worker's threads have: what is too deep for them fails
here first."""

_READ_BYTES = 1 << 16


def main() -> None:
    """Read structures until the worker closes the connection."""
    ignore_group_signals()
    path, vocab_size, *ends = sys.argv[1:]
    table: TokenTable | EngineError
    try:
        table = load_token_table(Path(path), int(vocab_size), tuple(map(int, ends)))
    except EngineError as error:
        table = error
    # Children share this memory as long as nothing writes to it.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=sys.stdin.fileno()) as orders:
        Reader(orders, table).run()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A structure that a child is reading."""

    process_id: int
    connection: socket.socket
    """The connection to the sender of the question."""


class Reader:
    """Forks a child for each structure, and waits until each has ended.

    Args:
        orders: passes the socket of each structure.
        table: the model's tokens, or why they cannot be used.
    """

    def __init__(self, orders: socket.socket, table: TokenTable | EngineError) -> None:
        self._orders = orders
        self._table = table
        self._readings: dict[int, _Reading] = {}
        """What children are reading, by the end of a pipe that closes when the child ends."""

    def run(self) -> None:
        """Serve until no order can arrive any more."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._orders, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self._orders:
                        selector.unregister(key.fd)
                        self._finish(key.fd)
                        continue
                    connection = self._next_order()
                    if connection is None:
                        return
                    selector.register(self._begin(connection), selectors.EVENT_READ)

    def _next_order(self) -> socket.socket | None:
        octet, descriptors, _, _ = socket.recv_fds(self._orders, 1, 1)
        return socket.socket(fileno=descriptors[0]) if octet and descriptors else None

    def _begin(self, connection: socket.socket) -> int:
        """Fork a child. Returns a descriptor that becomes readable when the child has ended."""
        end, held = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            os.close(end)
            self._orders.close()
            for other in self._readings.values():
                other.connection.close()
            _read_and_exit(connection, self._table)
        os.close(held)
        self._readings[end] = _Reading(process_id, connection)
        return end

    def _finish(self, end: int) -> None:
        os.close(end)
        reading = self._readings.pop(end)
        _, status = os.waitpid(reading.process_id, 0)
        with reading.connection as connection, contextlib.suppress(OSError):
            connection.sendall(_line({"exit_code": os.waitstatus_to_exitcode(status)}))


def _read_and_exit(connection: socket.socket, table: TokenTable | EngineError) -> None:
    """Read a structure and exit, in a child."""
    exit_code, errors = 1, os.dup(sys.stderr.fileno())
    try:
        # Rust writes there that it runs out of memory, which the exit code shows anyway.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        _limit_stack()
        limit_more_memory(MEMORY_BYTES)
        # The timers' signals end the process wherever it is.
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        question = json.loads(b"".join(iter(lambda: connection.recv(_READ_BYTES), b"")))
        signal.setitimer(signal.ITIMER_PROF, question["cpu_s"])
        connection.sendall(_line(answer(question["structure"], table)))
        exit_code = 0
    except (OSError, MemoryError):
        pass  # the sender is gone, or learns it from the exit code
    except BaseException:
        os.dup2(errors, sys.stderr.fileno())
        traceback.print_exc()
    finally:
        os._exit(exit_code)


def answer(asked: Mapping[str, Any], table: TokenTable | EngineError) -> dict[str, Any]:
    """Read a structure and return its digest with either the grammar's text, tried out, and its
    cost, or why it is refused.

    Args:
        table: the model's tokens, or why they cannot be used.
    """
    structure = Structure(**{**asked, "kind": StructureKind(asked["kind"])})
    try:
        return {"digest": structure.digest, **_reading(structure, table)}
    except EngineError as error:
        return {"digest": structure.digest, "refusal": error.message}


def _reading(structure: Structure, table: TokenTable | EngineError) -> dict[str, Any]:
    if isinstance(table, EngineError):
        raise table
    before = address_space()
    text = grammar_text(structure, table.names)
    matcher = matcher_of(structure, text, table.tokens)
    problem = problem_of(matcher, table.tokens, structure.digest)
    if problem is not None:
        raise refusal(structure, problem)
    return {
        "text": text,
        "num_bytes": max(0, address_space() - before),
        "seconds": time.process_time(),
    }


def _limit_stack() -> None:
    """Limit the stack, if this system has such a limit."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


def _line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"


if __name__ == "__main__":
    main()
