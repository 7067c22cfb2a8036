"""Tries changed files in a process of its own, which may crash, hang or want too much memory."""

import itertools
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from engine.errors import EngineError
from engine.processes.process_limits import limit_more_memory, limit_time
from loadtest.processes import pss_bytes
from tools.fuzz.findings import Findings
from tools.fuzz.readers import READERS, change_file

_CPU_S = 20
_MEMORY_BYTES = 2 << 30
_WARM_UP = 1000
"""Trials after which libraries have what they keep."""
_GROWTH_BYTES = 64 << 20
_PATIENCE_S = 3600.0
"""Processes may be stopped for long; processor time has a limit of its own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended: `read`, `refused`, or what went wrong."""

    name: str
    detail: str = ""

    @property
    def is_finding(self) -> bool:
        return self.name not in ("read", "refused")


def try_reader(name: str, seed: int, seconds: float, findings: Findings) -> Counter[str]:
    """Try files of one kind for a time. Returns how often each outcome came."""
    outcomes: Counter[str] = Counter()
    while seconds > 0:
        with _Child(name) as child:
            began = time.monotonic()  # a process starts for longer than many trials take
            for outcome in _trials(child, name, seed, outcomes.total(), findings):
                outcomes[outcome] += 1
                if time.monotonic() - began > seconds:
                    break
            seconds -= time.monotonic() - began
    return outcomes


def _trials(child: "_Child", name: str, seed: int, first: int, findings: Findings) -> Iterator[str]:
    """The outcomes of trials until the process ends or has grown."""
    level = 0
    for number in itertools.count(first):
        trial = f"{seed} {name} {number}"
        outcome = child.ask(trial)
        if outcome.is_finding:
            findings.add(f"{name}: {outcome.name}", trial, outcome.detail, child.files())
        yield outcome.name
        if not child.lives:
            return
        if number - first == _WARM_UP:
            level = pss_bytes(child.pid)
        elif level and number % 100 == 0 and pss_bytes(child.pid) > level + _GROWTH_BYTES:
            findings.add(f"{name}: memory grows", trial, f"from {level >> 20} MiB", {})
            return


class _Child:
    """A process that reads changed files of one kind."""

    def __init__(self, name: str) -> None:
        self._folder = Path(tempfile.mkdtemp())
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, name, self._folder))
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it has imported and read the whole files
        self.lives = True

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        shutil.rmtree(self._folder)

    def ask(self, trial: str) -> Outcome:
        """Try one change."""
        self._pipe.send(trial)
        try:
            if self._pipe.poll(_PATIENCE_S):
                outcome: Outcome = self._pipe.recv()
                return outcome
            return self._dead("hangs")
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode or 0
            return self._dead(f"dies of {signal.Signals(-code).name if code < 0 else code}")

    def _dead(self, how: str) -> Outcome:
        self.lives = False
        return Outcome(how)

    def files(self) -> dict[str, bytes]:
        """The files of the trial."""
        return {path.name: path.read_bytes() for path in (self._folder / "now").iterdir()}


def _answer(pipe: Connection, name: str, folder: Path) -> None:
    """Read changed files until nobody asks any more."""
    warnings.simplefilter("ignore")
    reader = READERS[name]
    whole, now = folder / "whole", folder / "now"
    whole.mkdir()
    path = now / reader.make(whole).relative_to(whole)
    shutil.copytree(whole, now)
    reader.read(path)
    limit_more_memory(_MEMORY_BYTES)
    pipe.send(None)
    while True:
        trial = pipe.recv()
        shutil.rmtree(now)
        shutil.copytree(whole, now)
        rng = random.Random(trial)
        change_file(rng.choice(sorted(now.iterdir())), rng)
        limit_time(_CPU_S)
        pipe.send(outcome_of(reader.read, path))


def outcome_of(read: Callable[[Path], object], path: Path) -> Outcome:
    try:
        read(path)
    except EngineError:
        return Outcome("refused")
    except BaseException as error:  # which is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.name}"
        return Outcome(f"{type(error).__name__} in {where}", traceback.format_exc())
    return Outcome("read")
