"""Has structures read by a process of its own, which may be lost.

A grammar is a small program from outside: some make its compiler run for minutes or overflow its
stack. The worker compiles what another process, with less memory and stack, has compiled before.
"""

import dataclasses
import json
import signal
import subprocess
import threading
import weakref
from pathlib import Path

import structlog

from engine.errors import InternalError, InvalidParameter
from engine.llm.structure.reader_child import CPU_SECONDS
from engine.own_packages import module_command
from engine.structure import Structure

WALL_SECONDS = 30.0
"""For one structure, on a busy machine; the first one waits for the process's start, too."""

log = structlog.get_logger(__name__)


class ReaderProcess:
    """Of one model; used by one thread. Started when it is first needed, or before, and again when
    it is lost.

    Args:
        path, vocab_size, eos_token_ids: as `load_token_table` takes them.
    """

    def __init__(self, path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        arguments = (str(path), str(vocab_size), *map(str, eos_token_ids))
        self._command = module_command("engine.llm.structure.reader_child", *arguments)
        self._process: subprocess.Popen[str] | None = None
        self._end: weakref.finalize[..., ReaderProcess] | None = None

    def start(self) -> None:
        """Have it read the model's tokens, which takes longer than most structures do."""
        try:
            self._start()
        except InternalError:
            log.warning("the process that reads structures is not there yet", exc_info=True)

    def read(self, structure: Structure) -> str:
        """The text of its grammar, which is known to compile.

        Raises:
            InvalidParameter: it cannot be honoured, or takes too much.
            InternalError: the process cannot be started.
        """
        process = self._process or self._start()
        timer = threading.Timer(WALL_SECONDS, process.kill)
        timer.start()
        try:
            answer = _ask(process, structure)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise _too_much(structure, process.returncode)
        if "refusal" in answer:
            raise InvalidParameter(answer["refusal"], param=structure.param)
        return answer["text"]

    def close(self) -> None:
        """End the process, if there is one."""
        self._process = None
        if self._end is not None:
            self._end()

    def _start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        except OSError as error:
            raise InternalError("the process that reads structures cannot be started") from error
        self._process = process
        self._end = weakref.finalize(self, _end, process)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def _ask(process: "subprocess.Popen[str]", structure: Structure) -> dict[str, str] | None:
    """The answer, or None if the process has ended."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(structure)) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line.endswith("\n"):
        process.wait()
        return None
    answer: dict[str, str] = json.loads(line)
    return answer


def _too_much(structure: Structure, exit_code: int) -> InvalidParameter:
    what = {
        -signal.SIGXCPU: f"more than {CPU_SECONDS} s of processor time",
        -signal.SIGKILL: f"more than {WALL_SECONDS:.0f} s",
    }.get(exit_code, "more memory, or a deeper stack, than it may")
    log.warning("a structure could not be read", field=structure.param, exit_code=exit_code)
    return InvalidParameter(
        f"{structure.param} takes {what} to read; make it smaller, or nest it less",
        param=structure.param,
    )
