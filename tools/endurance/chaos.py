"""Faults under load, drawn by a seed: what clients get meanwhile, and whether all is well again."""

import asyncio
import contextlib
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels import cache_folder
from tools.endurance.asking import Answer, Asker
from tools.endurance.disk import Disk, can_mount, mounted
from tools.endurance.faults import (
    EFFECTS,
    WORKER_TIMEOUT_S,
    Effect,
    Fault,
    Ground,
    draw_faults,
    move_clock,
)
from tools.endurance.judge import Twins, remains
from tools.endurance.order import Catalogue, Order
from tools.endurance.patience import PatientClock
from tools.endurance.sample import processes_of, work_of
from tools.endurance.served import Material, Server, free_port, running, tiny_material
from tools.endurance.traffic import Request, draw_request

REQUEST_S = 90.0
"""Every request has ended by then, whatever happens to the server."""
RECOVERY_S = 10.0
"""Beside a load of the models: how soon after a fault the server answers rightly again."""
IDLE_S = 30.0
NUM_USERS = 4
_PAUSE_S = 0.2
_CLOCK_SOURCE = Path(__file__).with_name("moved_clock.c")
_REFERENCE = [
    ("text", 0),
    ("chat", 0),
    ("structure", 0),
    ("adapter", 0),
    ("picture", 0),
    ("edit", 0),
]
"""Orders that must be answered rightly again after each fault."""


@dataclass(slots=True)
class ChaosRun:
    """What one seed did."""

    seed: int
    faults: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    load_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "faults": self.faults,
            "requests": self.requests,
            "outcomes": dict(self.outcomes),
            "load_s": round(self.load_s, 1),
            "problems": self.problems,
        }


@dataclass(slots=True)
class Window:
    """A time in which clients may notice something: from a fault to the recovery from it."""

    fault: Fault
    effect: Effect
    begin: float
    end: float = float("inf")


async def chaos_runs(
    folder: Path, logs: Path, seeds: Iterable[int], say: Callable[[str], None]
) -> list[ChaosRun]:
    """Run the seeds one after the other. Answers must be equal through all of them."""
    clock = folder / "clock"
    move_clock(clock, 0)
    preload = clock_library(folder)
    twins, runs = Twins(), []
    for seed in seeds:
        async with AsyncExitStack() as stack:
            place = folder / "place"
            disk = await stack.enter_async_context(mounted(place)) if can_mount() else None
            material = tiny_material(folder / "material", _options(place, disk))
            variables = {"LD_PRELOAD": str(preload), "MOVED_CLOCK": str(clock)}
            chaos = _Chaos(seed, material, disk, clock, logs, variables, twins)
            await chaos.go()
        shutil.rmtree(place, ignore_errors=True)
        runs.append(chaos.run)
        named = ", ".join(f"{one['name']} {one['recovered_s']} s" for one in chaos.run.faults)
        say(f"seed {seed}: {chaos.run.requests} requests; {named}")
        for problem in chaos.run.problems:
            say(f"  {problem}")
    return runs


def _options(place: Path, disk: Disk | None) -> list[str]:
    cache = (place if disk is None else disk.outside) / "cache"
    cache.mkdir(parents=True)
    kernels = cache_folder.DEFAULT.expanduser()
    if kernels.is_dir():  # else they are compiled again for each seed
        shutil.copytree(kernels, cache / "kernels")
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


class _Chaos:
    """One seed against one server."""

    def __init__(
        self,
        seed: int,
        material: Material,
        disk: Disk | None,
        clock: Path,
        logs: Path,
        variables: dict[str, str],
        twins: Twins,
    ) -> None:
        self.run = ChaosRun(seed)
        self._material = material
        self._disk = disk
        self._clock = clock
        self._log = logs / f"chaos-{seed}.log"
        self._variables = variables
        self._twins = twins
        self._catalogue = Catalogue(0, material.names)  # the same orders with every seed
        self._port = free_port()
        self._asker = Asker(f"http://127.0.0.1:{self._port}", REQUEST_S)
        self._windows: list[Window] = []
        self._stack = AsyncExitStack()
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    async def go(self) -> None:
        """Make all faults while users ask, and look at what is left."""
        async with self._stack:
            await self._start()
            self.run.load_s = self.server.launch.ready_s
            if not await self._answers_rightly():
                self.run.problems.append("no right answers before the first fault")
            before = self._processes()
            leaving = asyncio.Event()
            users = [
                asyncio.create_task(self._user(number, leaving)) for number in range(NUM_USERS)
            ]
            for fault in draw_faults(self.run.seed):
                await self._befall(fault)
            leaving.set()
            await asyncio.gather(*users)
            await self._look_at_remains(before)
            self.run.problems += await self.server.end()

    async def _start(self) -> None:
        prefix = "" if self._disk is None else self._disk.prefix
        self._server = await self._stack.enter_async_context(
            running(self._material, self._log, prefix, self._port, self._variables)
        )

    async def _befall(self, fault: Fault) -> None:
        effect = EFFECTS[fault.name]
        told: dict[str, Any] = {"name": fault.name, "recovered_s": None}
        self.run.faults.append(told)
        if effect.needs_disk and self._disk is None:
            told["left_out"] = True
            return
        await asyncio.sleep(fault.after_s)
        window = Window(fault, effect, time.monotonic())
        self._windows.append(window)
        undo = effect.do(Ground(self.server, self._disk, self._clock), random.Random(fault.seed))
        try:
            if effect.sleeps:
                path = f"/sleep?model={self._material.names.text}&level=2"
                await self._asker.ask(Order("sleep", 0, path, {}))
            await asyncio.sleep(fault.hold_s)
        finally:
            undo()
        if effect.ends_server is not None:
            await self._restart(fault, effect)
        told["recovered_s"] = await self._recovery(fault, effect)
        window.end = time.monotonic()

    async def _restart(self, fault: Fault, effect: Effect) -> None:
        assert effect.ends_server is not None
        problems = await self.server.end(effect.ends_server)
        self.run.problems += [f"{fault.name}: {problem}" for problem in problems]
        await self._stack.aclose()
        await self._start()

    async def _recovery(self, fault: Fault, effect: Effect) -> float | None:
        """Seconds until all reference orders were answered rightly; None if that took too long."""
        most_s = RECOVERY_S + self.run.load_s + effect.extra_s
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
        self.run.problems.append(f"{fault.name}: no right answers {most_s:.0f} s later")
        return None

    async def _answers_rightly(self) -> bool:
        for kind, number in _REFERENCE:
            order = self._catalogue.order(kind, number)
            answer = await self._asker.ask(order)
            if self._twins.problem(order, answer):
                return False
        return True

    async def _user(self, number: int, leaving: asyncio.Event) -> None:
        rng = random.Random(f"{self.run.seed} user {number}")
        while not leaving.is_set():
            request = draw_request(self._catalogue, rng)
            began = time.monotonic()
            answer = await self._asker.ask(request.order, request.manner, request.pieces)
            self._judge(request, answer, began)
            await asyncio.sleep(rng.expovariate(8.0))

    def _judge(self, request: Request, answer: Answer, began: float) -> None:
        self.run.requests += 1
        outcome = answer.code or ("left" if answer.has_left else str(answer.status))
        self.run.outcomes["lost" if answer.is_lost else outcome] += 1
        problem = self._twins.problem(request.order, answer)
        if problem is None:
            return
        now = time.monotonic()
        windows = [one for one in self._windows if one.begin <= now and one.end >= began]
        for window in windows:
            is_told = answer.code in window.effect.codes and answer.problem is None
            if is_told or (answer.is_lost and window.effect.may_lose):
                return
        during = " and ".join(window.fault.name for window in windows) or "no fault"
        self.run.problems.append(f"during {during}, {request.manner}: {problem}")

    def _processes(self) -> Counter[str]:
        return Counter(one.kind for one in processes_of(self.server.pid))

    async def _look_at_remains(self, before: Counter[str]) -> None:
        """Nothing may be under way, and no process beside those of the start."""
        clock = PatientClock()
        work = await work_of(self.server.url)
        while (remains(work) or self._processes() - before) and clock.seconds < IDLE_S:
            await clock.sleep(_PAUSE_S)
            work = await work_of(self.server.url)
        self.run.problems += remains(work)
        for kind, number in (self._processes() - before).items():
            self.run.problems.append(f"{number} more processes of the kind {kind} than before")
