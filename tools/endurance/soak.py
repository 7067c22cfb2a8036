"""Mixed traffic for a long time, in laps: after each one the server must be idle and unchanged."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from tools.endurance.asking import Asker
from tools.endurance.judge import Growth, Twins, growths, remains
from tools.endurance.order import Catalogue, Order
from tools.endurance.patience import PatientClock
from tools.endurance.sample import Sample, look, work_of
from tools.endurance.served import Material, Server
from tools.endurance.traffic import Change, Errand, Request, errands

REQUEST_TIMEOUT_S = 600.0
"""Far longer than any request takes: this program and the server may be paused meanwhile."""
QUIET_S = 90.0
"""How long the server may take to have nothing to do after a lap."""
WARM_UP_SHARE = 0.25
_SAMPLE_PAUSE_S = 5.0
_MOST_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, by how many users, from which seed."""

    seed: int
    seconds: float
    users: int = 5
    lap_s: float = 45.0


@dataclass(slots=True)
class SoakRun:
    """What happened."""

    requests: Counter[str] = field(default_factory=Counter)
    manners: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    busy: list[Sample] = field(default_factory=list)
    quiet: list[Sample] = field(default_factory=list)
    fits: list[Growth] = field(default_factory=list)
    num_problems: int = 0
    seconds: float = 0.0

    def complain(self, problem: str) -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds),
            "kinds": dict(self.requests),
            "manners": dict(self.manners),
            "changes": dict(self.changes),
            "compared": dict(self.compared),
            "num_problems": self.num_problems,
            "problems": self.problems,
            "growth": [asdict(fit) for fit in self.fits],
            "quiet": _table(self.quiet),
            "busy": _table(self.busy),
        }


def _table(samples: list[Sample]) -> list[list[Any]]:
    """What was seen, a line for each sample, below a line of names."""
    rows = [_row(sample) for sample in samples]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [names, *([row.get(name) for name in names] for row in rows)]


def _row(sample: Sample) -> dict[str, float]:
    values = {name: round(value, 1) for name, value in sample.values().items()}
    blocks = sample.work.get("kv_cache_usage_ratio", 0.0)
    return {"at_s": round(sample.at_s), **values, "blocks": round(blocks, 3)}


class Soak:
    """One run against one server."""

    def __init__(
        self, plan: Plan, material: Material, server: Server, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._names = material.names
        self._catalogue = Catalogue(plan.seed, material.names)
        self._server = server
        self._asker = Asker(server.url, REQUEST_TIMEOUT_S)
        self._say = say
        self._twins = Twins()
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.run = SoakRun()
        self._began = 0.0

    async def soak(self) -> None:
        """Run all laps. An interrupt leaves `run` with what was seen so far."""
        self._began = time.monotonic()
        users = [
            errands(self._catalogue, f"{self._plan.seed} user {number}")
            for number in range(self._plan.users)
        ]
        watching = asyncio.create_task(self._watch())
        try:
            while self._elapsed_s < self._plan.seconds:
                await self._lap(users)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self._conclude()

    def _complain(self, problem: str) -> None:
        self._say(problem)
        self.run.complain(problem)

    async def end(self) -> None:
        """Stop the server, and complain about what it leaves."""
        for problem in await self._server.end():
            self._complain(problem)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    async def _lap(self, users: list[Iterator[Errand]]) -> None:
        end = time.monotonic() + self._plan.lap_s
        await asyncio.gather(*(self._user(user, end) for user in users))
        await self._quiet()
        sample = self.run.quiet[-1]
        self._say(
            f"{sample.at_s:5.0f} s: {self.run.requests.total()} requests, "
            f"{sample.values()['memory']:.0f} MiB, {sample.descriptors} descriptors, "
            f"{self.run.num_problems} problems"
        )

    async def _user(self, mine: Iterator[Errand], end: float) -> None:
        for errand in mine:
            lock = self._locks[errand.lock] if errand.lock else contextlib.nullcontext()
            async with lock:
                for step in errand.steps:
                    await self._take(step)
            await asyncio.sleep(errand.pause_s)
            if time.monotonic() > end:
                return

    async def _take(self, step: Request | Change) -> None:
        if isinstance(step, Change):
            order = Order(step.path.partition("?")[0], 0, step.path, step.body, step.statuses)
            answer = await self._asker.ask(order)
            self.run.changes[order.kind] += 1
            if answer.status not in step.statuses:
                self._complain(f"{step.path}: HTTP {answer.status} {answer.code or ''}")
            return
        answer = await self._asker.ask(step.order, step.manner, step.pieces)
        self.run.requests[step.order.kind] += 1
        self.run.manners["left" if answer.has_left else step.manner] += 1
        if problem := self._twins.problem(step.order, answer):
            self._complain(f"{self._elapsed_s:.0f} s, {step.manner}: {problem}")

    async def _quiet(self) -> None:
        """Wake all models, wait until nothing is under way, and look at what is left."""
        for name in self._names.models:
            await self._take(Change(f"/wake_up?model={name}", {}))
        clock, work = PatientClock(), await work_of(self._server.url)
        while remains(work) and clock.seconds < QUIET_S:
            await clock.sleep(0.2)
            work = await work_of(self._server.url)
        for problem in remains(work):
            self._complain(f"{self._elapsed_s:.0f} s: {problem}")
        self.run.quiet.append(await self._look(work))

    async def _look(self, work: dict[str, float]) -> Sample:
        return await asyncio.to_thread(look, self._server.pid, self._elapsed_s, work)

    async def _watch(self) -> None:
        """Look at the busy server every few seconds."""
        while True:
            await asyncio.sleep(_SAMPLE_PAUSE_S)
            try:
                self.run.busy.append(await self._look(await work_of(self._server.url)))
            except httpx.HTTPError as error:
                self._complain(f"{self._elapsed_s:.0f} s: /metrics: {type(error).__name__}")

    def _conclude(self) -> None:
        self.run.seconds = self._elapsed_s
        self.run.compared = self._twins.num_compared
        self.run.fits = growths(self.run.quiet, WARM_UP_SHARE * self.run.seconds)
        for fit in self.run.fits:
            if fit.is_too_much:
                self._complain(
                    f"{fit.name} grows by {fit.per_hour:.1f} an hour; the bound is "
                    f"{fit.bound_per_hour:g}"
                )
