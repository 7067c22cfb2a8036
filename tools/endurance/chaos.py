"""Faults under load, drawn by a seed: what clients get meanwhile, and whether all is well again."""

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from kernels import cache_folder
from loadtest.launch import free_port
from tools.endurance.asking import Answer, Asker
from tools.endurance.disk import Disk, can_mount, mounted
from tools.endurance.faults import (
    EFFECTS,
    KILL,
    WORKER_TIMEOUT_S,
    Effect,
    Fault,
    Ground,
    draw_faults,
    move_clock,
)
from tools.endurance.judge import Twins, remains
from tools.endurance.network import Network, has_entered
from tools.endurance.order import Catalogue, Order
from tools.endurance.patience import PatientClock
from tools.endurance.sample import processes_of, work_of
from tools.endurance.served import Server, running, tiny_material
from tools.endurance.traffic import Request, draw_request

REQUEST_S = 90.0
"""Every request has ended by then, whatever happens to the server."""
RECOVERY_S = 10.0
"""Beside two starts, as users ask meanwhile: how soon after a fault all answers are right again."""
IDLE_S = 30.0
NUM_USERS = 4
_PAUSE_S = 0.2
_MOST_TRIES = 3
_LATE_S = 1.5
"""If this program wakes so much too late, the machine was elsewhere, and so was the server."""
_CLOCK_SOURCE = Path(__file__).with_name("moved_clock.c")
_REFERENCE = ("text", "chat", "structure", "adapter", "embedding", "picture", "edit")
"""Kinds of order that must be answered rightly again after each fault."""


@dataclass(slots=True)
class ChaosRun:
    """What one seed did."""

    seed: int
    faults: list[dict[str, Any]] = field(default_factory=list)
    num_requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    tries: int = 1
    is_disturbed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "faults": self.faults,
            "num_requests": self.num_requests,
            "outcomes": dict(self.outcomes),
            "tries": self.tries,
            "problems": self.problems,
        }


@dataclass(slots=True)
class Window:
    """A time in which clients may notice something: from a fault to the recovery from it."""

    fault: Fault
    effect: Effect
    begin: float
    end: float = float("inf")


class Chaos:
    """A server on a small disk with a clock that can be moved. Use as an asynchronous context.

    Seeds follow each other on the same server, so answers must be equal through all faults, and
    what one fault leaves is found by the next seed.
    """

    def __init__(self, folder: Path, log: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._log = log
        self._say = say
        self._clock = folder / "clock"
        self._twins = Twins()
        self._port = free_port()
        self._asker = Asker(f"http://127.0.0.1:{self._port}", REQUEST_S)
        self._around = AsyncExitStack()
        self._own = AsyncExitStack()
        """The server's."""
        self._disk: Disk | None = None
        self._network = Network(self._port) if has_entered() else None
        self._server: Server | None = None
        self._run = ChaosRun(0)
        self._windows: list[Window] = []
        self._usual: Counter[str] = Counter()
        self.load_s = 0.0

    async def __aenter__(self) -> "Chaos":
        place = self._folder / "place"
        if can_mount():
            self._disk = await self._around.enter_async_context(mounted(place))
        self._material = tiny_material(self._folder / "material", _options(place, self._disk))
        # The same orders with every seed.
        self._catalogue = Catalogue(0, self._material.names)
        move_clock(self._clock, 0)
        preload = clock_library(self._folder)
        self._variables = {"LD_PRELOAD": str(preload), "MOVED_CLOCK": str(self._clock)}
        try:
            await self._start()
        except BaseException:
            await self._around.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._own.aclose()
        await self._around.aclose()

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    async def run(self, seed: int) -> ChaosRun:
        """Make a seed's faults. A seed that the machine has disturbed is tried again."""
        for number in range(_MOST_TRIES):
            self._run = ChaosRun(seed, tries=number + 1)
            watching = asyncio.create_task(self._watch())
            await self._go()
            watching.cancel()
            named = ", ".join(map(_told, self._run.faults))
            again = "; disturbed" if self._run.is_disturbed else ""
            self._say(f"seed {seed}: {self._run.num_requests} requests; {named}{again}")
            for problem in self._run.problems:
                self._say(f"  {problem}")
            if not (self._run.problems and self._run.is_disturbed):
                break
        return self._run

    async def end(self) -> list[str]:
        """Stop the server. Returns what was wrong with its end."""
        return await self.server.end()

    async def _start(self) -> None:
        prefix = "" if self._disk is None else self._disk.prefix
        self._server = await self._own.enter_async_context(
            running(self._material, self._log, prefix, self._port, self._variables)
        )
        self.load_s = max(self.load_s, self.server.launch.ready_s)

    async def _restart(self, number: signal.Signals) -> list[str]:
        """End the server by a signal and start it. Returns what was wrong with its end."""
        problems = await self.server.end(number)
        await self._own.aclose()
        await self._start()
        return problems

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(_PAUSE_S)
            if time.monotonic() - began > _PAUSE_S + _LATE_S:
                self._run.is_disturbed = True

    async def _go(self) -> None:
        self._windows = []
        if not await self._answers_rightly():
            self._run.problems.append("no right answers before the first fault")
        # A helper that was killed is started again once it is needed, perhaps in a later seed.
        self._usual |= self._processes()
        leaving = asyncio.Event()
        users = [asyncio.create_task(self._user(number, leaving)) for number in range(NUM_USERS)]
        for fault in draw_faults(self._run.seed):
            await self._befall(fault)
        leaving.set()
        await asyncio.gather(*users)
        await self._look_at_remains()
        if not await self._answers_rightly():
            self._run.problems.append("no right answers in the end; the server is started anew")
            await self._restart(KILL)

    async def _befall(self, fault: Fault) -> None:
        effect = EFFECTS[fault.name]
        told: dict[str, Any] = {"name": fault.name, "recovered_s": None}
        self._run.faults.append(told)
        ground = Ground(self.server, self._disk, self._network, self._clock)
        if ground.lacks(effect.needs):
            told["lacks"] = effect.needs
            return
        await asyncio.sleep(fault.after_s)
        window = Window(fault, effect, time.monotonic())
        self._windows.append(window)
        undo = effect.do(ground, random.Random(fault.seed))
        try:
            if effect.sleeps:
                path = f"/sleep?model={self._material.names.text}&level=2"
                await self._asker.ask(Order("sleep", 0, path, {}))
            await asyncio.sleep(fault.hold_s)
        finally:
            undo()
        if effect.ends_server is not None:
            problems = await self._restart(effect.ends_server)
            self._run.problems += [f"{fault.name}: {problem}" for problem in problems]
        told["recovered_s"] = await self._recovery(fault, effect)
        window.end = time.monotonic()

    async def _recovery(self, fault: Fault, effect: Effect) -> float | None:
        """Seconds until all reference orders were answered rightly; None if that took too long."""
        most_s = RECOVERY_S + 2 * self.load_s + effect.extra_s
        clock = PatientClock()
        while clock.seconds < most_s:
            asking = asyncio.create_task(self._answers_rightly())
            await clock.wait_for(asking, most_s)
            if asking.done() and asking.result():
                return round(clock.seconds, 1)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            await clock.sleep(_PAUSE_S)
        self._run.problems.append(f"{fault.name}: no right answers {most_s:.0f} s later")
        return None

    async def _answers_rightly(self) -> bool:
        for kind in _REFERENCE:
            order = self._catalogue.order(kind, 0)
            answer = await self._asker.ask(order)
            if self._twins.problem(order, answer):
                return False
        return True

    async def _user(self, number: int, leaving: asyncio.Event) -> None:
        rng = random.Random(f"{self._run.seed} user {number}")
        while not leaving.is_set():
            request = draw_request(self._catalogue, rng)
            began = time.monotonic()
            answer = await self._asker.ask(request.order, request.manner, request.pieces)
            self._judge(request, answer, began)
            await asyncio.sleep(rng.expovariate(8.0))

    def _judge(self, request: Request, answer: Answer, began: float) -> None:
        self._run.num_requests += 1
        outcome = answer.code or ("left" if answer.has_left else str(answer.status))
        self._run.outcomes["lost" if answer.is_lost else outcome] += 1
        problem = self._twins.problem(request.order, answer)
        if problem is None:
            return
        now = time.monotonic()
        windows = [one for one in self._windows if one.begin <= now and one.end >= began]
        if any(is_explained(answer, window.effect) for window in windows):
            return
        during = " and ".join(window.fault.name for window in windows) or "no fault"
        self._run.problems.append(f"during {during}, {request.manner}: {problem}")

    def _processes(self) -> Counter[str]:
        """The server's processes by kind, without those that decode pictures: a pool that grows
        to its size as it is used."""
        kinds = Counter(one.kind for one in processes_of(self.server.pid))
        del kinds["pictures"]
        return kinds

    async def _look_at_remains(self) -> None:
        """Nothing may be under way, and no process beside those that seeds began with."""
        clock = PatientClock()
        work = await work_of(self.server.url)
        while (remains(work) or self._processes() - self._usual) and clock.seconds < IDLE_S:
            await clock.sleep(_PAUSE_S)
            work = await work_of(self.server.url)
        self._run.problems += remains(work)
        for kind, number in (self._processes() - self._usual).items():
            self._run.problems.append(f"{number} more processes of the kind {kind} than before")


def is_explained(answer: Answer, effect: Effect) -> bool:
    """Whether a fault makes it right that a client did not get what it asked for."""
    if answer.is_lost:
        return effect.may_lose
    return answer.problem is None and answer.code in effect.codes


def _told(fault: dict[str, Any]) -> str:
    if part := fault.get("lacks"):
        return f"{fault['name']} left out: this system gives us no {part} of our own"
    return f"{fault['name']} {fault['recovered_s']} s"


def _options(place: Path, disk: Disk | None) -> list[str]:
    cache = (place if disk is None else disk.outside) / "cache"
    cache.mkdir(parents=True)
    kernels = cache_folder.DEFAULT.expanduser()
    if kernels.is_dir():  # else they are compiled anew
        shutil.copytree(kernels, cache / "kernels", ignore=shutil.ignore_patterns("building-*"))
    return [
        *("--cache-dir", str(place / "cache"), "--kv-store", str(place / "kv")),
        *("--kv-store-bytes", "64000000", "--worker-timeout-s", str(WORKER_TIMEOUT_S)),
    ]


def clock_library(folder: Path) -> Path:
    """Compile the library that moves the wall clock of processes which preload it."""
    library = folder / "moved_clock.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_CLOCK_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library
