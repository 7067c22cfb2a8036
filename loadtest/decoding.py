"""Measures what decoding features cost, on one server or several of one kind.

All servers of a plan run at once, so that each case is measured shortly before or after the case it
is compared with; only one server has work at a time. Each repeat runs the cases in another order,
and cases with the same task get the same prompts.

A server's earlier work must not affect the result. So each case has its own prefix cache, and all
servers do about equally many runs before the measurement, because recorded steps are faster.
"""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from loadtest.client import CompletionClient, Target
from loadtest.decoding_plan import TASKS, DecodingCase, DecodingPlan
from loadtest.drive import drive
from loadtest.interrupt import Interrupt
from loadtest.launch import launched
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.record import RequestRecord
from loadtest.session import Session
from loadtest.workload import PlannedRequest, Workload

_WARM_UP = -1
"""The number of the unmeasured repeat; its further runs count down from here."""


class DecodingComparison:
    """Runs a plan. `document` always holds what has been measured so far."""

    def __init__(self, plan: DecodingPlan, session: Session) -> None:
        self._plan = plan
        self._session = session
        self._pids: list[int] = []
        self._clients: dict[str, CompletionClient] = {}
        """The client of each case."""
        self.document: dict[str, Any] = {
            "rung": plan.rung,
            "num_requests": {str(key): value for key, value in plan.num_requests.items()},
            "output_tokens": plan.output_tokens,
            "warmup_tokens": plan.warmup_tokens,
            "repeats": plan.repeats,
            "seed": session.seed,
            "cases": [
                {"name": case.name, "server": case.server, "task": case.task, "body": _body(case)}
                | ({} if case.against is None else {"against": case.against})
                for case in plan.cases
            ],
            "partial": True,
            "runs": [],
        }

    async def run(self, interrupt: Interrupt) -> None:
        """Measure everything, saving after every repeat; `partial` stays true if cut short."""
        with self._session.measuring(self.document):
            async with AsyncExitStack() as stack:
                for server in self._plan.servers:
                    self._session.say(f"starting {server.name}")
                    log = server.log_path(self._session.log_dir)
                    launch = await stack.enter_async_context(launched(server, log))
                    self._pids.append(launch.pid)
                self._clients = {case.name: self._client(case) for case in self._plan.cases}
                for repeat in range(_WARM_UP, self._plan.repeats):
                    await self._round(repeat, interrupt)
                    self._session.save(self.document)

    def _client(self, case: DecodingCase) -> CompletionClient:
        server = next(one for one in self._plan.servers if one.name == case.server)
        return CompletionClient(Target(server.url, server.model, extra_body=_body(case)))

    async def _round(self, repeat: int, interrupt: Interrupt) -> None:
        name = "warm-up" if repeat == _WARM_UP else f"repeat {repeat + 1} of {self._plan.repeats}"
        for concurrency in self._plan.num_requests:
            self._session.say(f"{name}, {concurrency} at a time")
            cases = list(self._plan.cases)
            random.Random(f"{self._session.seed} {repeat} {concurrency}").shuffle(cases)
            for case in cases:
                if repeat == _WARM_UP:
                    await self._warm_up(case, concurrency, interrupt)
                    continue
                self.document["runs"].append(await self._run(case, repeat, concurrency, interrupt))

    async def _warm_up(self, case: DecodingCase, concurrency: int, interrupt: Interrupt) -> None:
        num_cases = Counter(one.server for one in self._plan.cases)
        for i in range(max(num_cases.values()) // num_cases[case.server]):
            await self._run(case, _WARM_UP - i, concurrency, interrupt)

    async def _run(
        self, case: DecodingCase, repeat: int, concurrency: int, interrupt: Interrupt
    ) -> dict[str, Any]:
        workload = self._workload(case, repeat, concurrency)
        before = CpuTimes.read(self._pids)
        outcome = await drive(workload, self._clients[case.name], interrupt=interrupt)
        after = CpuTimes.read(self._pids)
        if outcome.interrupted or interrupt.requested:
            raise asyncio.CancelledError
        if errors := [record.error for record in outcome.records if record.error]:
            self._session.say(f"  {case.name}: {len(errors)} failed: {errors[0]}")
        return {
            "case": case.name,
            "repeat": repeat,
            "concurrency": concurrency,
            "cpu": cpu_shares(before, after),
            "requests": [_row(record) for record in outcome.records],
        }

    def _workload(
        self, case: DecodingCase, repeat: int, concurrency: int
    ) -> Workload[PlannedRequest]:
        is_again = case.task == "again"
        which = f"{case.task} {0 if is_again else repeat} {concurrency}"
        rng = random.Random(f"{self._session.seed} {which}")
        # Texts that are to be repeated must be complete.
        is_short = repeat <= _WARM_UP and not is_again
        max_tokens = self._plan.warmup_tokens if is_short else self._plan.output_tokens
        requests = [
            PlannedRequest(i, TASKS[case.task](rng.randrange(2**40)), max_tokens)
            for i in range(self._plan.num_requests[concurrency])
        ]
        return Workload(case.task, requests, concurrency)


def _body(case: DecodingCase) -> dict[str, Any]:
    return {"cache_salt": case.name} | case.body


def _row(record: RequestRecord) -> dict[str, Any]:
    """The record as a row, without times of tokens: some texts arrive all at once."""
    return {key: value for key, value in record.to_row().items() if key != "gaps_ms"}
