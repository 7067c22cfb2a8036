"""Finds work that keeps others waiting: on an event loop, or in a worker between two steps, longer
than a limit.

Only the thread's processor time counts, so that a busy machine is not mistaken for slow code.
Garbage collections count separately. Once half of the limit is over, another thread records where
the work is. The work of other threads is not seen, even if they hold the interpreter's lock for
long.
"""

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "TEST_STALLS"
"""The environment variable with the file to which a server adds its findings."""

_LOOK_S = 0.01
_FRAMES = 12
_LOOP_METHODS = {
    "call_soon": 0,
    "call_soon_threadsafe": 0,
    "call_later": 1,
    "call_at": 1,
    "add_reader": 1,
    "add_writer": 1,
}
"""The methods that give callbacks to an event loop, with the callback's position in their
arguments."""


def _slowness() -> float:
    """How many times longer Python takes here than on the processor for which the limit was chosen
    (an AMD EPYC of generation 5); 1 on a faster one."""
    times = []
    for _ in range(3):
        begun_s = time.thread_time()
        sum(number * number % 7 for number in range(100_000))
        times.append(time.thread_time() - begun_s)
    return max(1.0, min(times) / 0.004)


LIMIT_S = 0.1 * _slowness()
"""The longest processor time of a thread that is not a stall."""


class StallWatch:
    """Watches the thread that makes it.

    Args:
        process: the name of this process in findings.
    """

    def __init__(self, process: str) -> None:
        self.is_on = True
        self._process = process
        self._findings = Path(os.environ[VARIABLE])
        self._thread = threading.get_ident()
        self._begun_s: float | None = None
        self._seen: list[str] = []
        self._collecting_s = 0.0
        self._collected_s = 0.0
        gc.callbacks.append(self._on_collection)
        threading.Thread(target=self._look, name="stall-watch", daemon=True).start()

    def methods(self, owner: type, *names: str) -> None:
        """Watch these methods of all objects of a class."""
        for name in names:
            setattr(owner, name, self._watched(getattr(owner, name), f"{owner.__name__}.{name}"))

    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the callbacks that an event loop gets from now on."""
        for name, place in _LOOP_METHODS.items():
            setattr(loop, name, self._giving(getattr(loop, name), place))

    def _giving(self, give: Callable[..., Any], place: int) -> Callable[..., Any]:
        def given(*args: Any, **options: Any) -> Any:
            callback = self._watched(args[place], None)
            return give(*args[:place], callback, *args[place + 1 :], **options)

        return given

    def _watched(self, work: Callable[..., Any], name: str | None) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != self._thread or self._begun_s is not None:
                return work(*args, **options)
            origin = _place_of(work) if name is None else ""
            collected_s = self._collected_s
            self._begun_s = begun_s = time.thread_time()
            try:
                return work(*args, **options)
            finally:
                self._begun_s = None
                taken_s = time.thread_time() - begun_s - (self._collected_s - collected_s)
                if taken_s > LIMIT_S:
                    self._note(name or f"{origin} to {_place_of(work)}", taken_s)
                self._seen = []

        return watched

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        now_s = time.thread_time()
        if phase == "start":
            self._collecting_s = now_s
            return
        taken_s = now_s - self._collecting_s
        self._collected_s += taken_s
        if taken_s > LIMIT_S:
            self._note(f"garbage collection of generation {info['generation']}", taken_s)

    def _note(self, what: str, taken_s: float) -> None:
        if not self.is_on:
            return
        finding = {"process": self._process, "seconds": taken_s, "what": what, "seen": self._seen}
        with self._findings.open("a") as file:
            file.write(json.dumps(finding) + "\n")

    def _look(self) -> None:
        """Record where long work is, in a thread of its own."""
        clock = time.pthread_getcpuclockid(self._thread)
        while True:
            time.sleep(_LOOK_S)
            begun_s = self._begun_s
            if begun_s is None or self._seen:
                continue
            if time.clock_gettime(clock) - begun_s > LIMIT_S / 2:
                frame = sys._current_frames().get(self._thread)
                self._seen = _frames_of(frame)


def _frames_of(frame: FrameType | None) -> list[str]:
    stack = traceback.extract_stack(frame, limit=None)
    return [f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in stack[-_FRAMES:]]


def _place_of(callback: Callable[..., Any]) -> str:
    """Name a callback; for a step of a task, say how far its coroutine has come."""
    owner = getattr(callback, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return getattr(callback, "__qualname__", repr(callback))
    awaited: Any = owner.get_coro()
    place = getattr(awaited, "__qualname__", repr(awaited))
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return place


def findings(path: Path) -> list[str]:
    """Read the findings, one line each."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        one = json.loads(line)
        where = f", among them at {' > '.join(one['seen'])}" if one["seen"] else ""
        found.append(f"{one['process']}: {one['what']} took {one['seconds']:.3f} s{where}")
    return found


def watch_loaded(process: str, methods: Mapping[str, Sequence[str]]) -> None:
    """Watch methods of classes, given as `module.Class`, whose modules have been imported."""
    watch = StallWatch(process)
    for name, some in methods.items():
        module, _, owner = name.rpartition(".")
        if module in sys.modules:
            watch.methods(getattr(sys.modules[module], owner), *some)
