"""Compares servers on one machine: starts each in turn, measures it, and stops it again.

One server runs at a time, because an idle one still holds memory and may poll. The order is
rotated from repeat to repeat, so that no server always gets the machine's better minutes. In one
repeat all servers get the same prompts.

A machine's speed may change between two servers' turns. Servers that do nothing while idle can all
run at once instead (`ComparisonPlan.together`). They are then asked in turn at each concurrency, so
that compared runs are only seconds apart.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from loadtest.client import CompletionClient, Target
from loadtest.drive import warm_up
from loadtest.interrupt import Interrupt
from loadtest.launch import Launch, ServerCommand, launched
from loadtest.measure import measure
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.plan import ComparisonPlan
from loadtest.session import Session
from loadtest.workload import peers_workload


@dataclass(frozen=True, slots=True)
class NoiseLimit:
    """A run counts if all other processes together used at most this share of the machine.

    A noisier run is repeated with new prompts, up to `max_attempts` runs in total. If none was
    quiet enough, the last one is kept and marked.
    """

    max_others: float = 0.04
    max_attempts: int = 4


@dataclass(frozen=True, slots=True)
class _Visited:
    """A running server and its client."""

    name: str
    client: CompletionClient
    launch: Launch


class Comparison:
    """Runs a plan. `document` always holds what has been measured so far."""

    def __init__(
        self,
        plan: ComparisonPlan,
        session: Session,
        noise: NoiseLimit,
        *,
        idle_s: float = 4.0,
    ) -> None:
        self._plan = plan
        self._session = session
        self._noise = noise
        self._idle_s = idle_s
        self.document: dict[str, Any] = {
            "workload": "peers",
            "rung": plan.rung,
            "concurrencies": list(plan.concurrencies),
            "prompt_words": list(plan.prompt_words),
            "output_tokens": plan.output_tokens,
            "num_requests": {str(key): value for key, value in plan.num_requests.items()},
            "repeats": plan.repeats,
            "warmup": plan.warmup,
            "together": plan.together,
            "seed": session.seed,
            "max_others": noise.max_others,
            "partial": True,
            "starts": [],
            "discarded": [],
            "runs": [],
        }

    async def run(self, interrupt: Interrupt) -> None:
        """Measure everything, saving after every server; `partial` stays true if cut short."""
        with self._session.measuring(self.document):
            if self._plan.together:
                await self._ask_in_turn(interrupt)
                return
            for repeat in range(self._plan.repeats):
                for server in self._in_turn(repeat):
                    self._session.say(f"repeat {repeat + 1} of {self._plan.repeats}: {server.name}")
                    async with self._visit(server, repeat) as visited:
                        for load in self._loads():
                            await self._point(visited, repeat, *load, interrupt)
                    self._session.save(self.document)

    async def _ask_in_turn(self, interrupt: Interrupt) -> None:
        """Measure all servers while all of them run until the end."""
        async with contextlib.AsyncExitStack() as visits:
            visited = {
                server.name: await visits.enter_async_context(self._visit(server, 0))
                for server in self._plan.servers
            }
            for repeat in range(self._plan.repeats):
                self._session.say(f"repeat {repeat + 1} of {self._plan.repeats}")
                for load in self._loads():
                    for server in self._in_turn(repeat):
                        await self._point(visited[server.name], repeat, *load, interrupt)
                self._session.save(self.document)
        self._session.save(self.document)

    def _in_turn(self, repeat: int) -> tuple[ServerCommand, ...]:
        servers = self._plan.servers
        shift = repeat % len(servers)
        return servers[shift:] + servers[:shift]

    def _loads(self) -> list[tuple[int, int]]:
        """Pairs of the words of a prompt and the number of clients."""
        return list(product(self._plan.prompt_words, self._plan.concurrencies))

    @contextlib.asynccontextmanager
    async def _visit(self, server: ServerCommand, repeat: int) -> AsyncIterator[_Visited]:
        start: dict[str, Any] = {"server": server.name, "repeat": repeat}
        async with launched(server, server.log_path(self._session.log_dir)) as launch:
            self._session.say(f"  {server.name} serves after {launch.ready_s:.1f} s")
            target = Target(
                server.url, server.model, extra_body=server.extra_body, models=server.models
            )
            yield _Visited(server.name, CompletionClient(target), launch)
            start["idle_cpu"] = await _idle_share(launch.pid, self._idle_s)
        self.document["starts"].append(start | launch.to_json())

    async def _point(
        self,
        visited: _Visited,
        repeat: int,
        num_words: int,
        concurrency: int,
        interrupt: Interrupt,
    ) -> None:
        """Measure one point, repeating runs that were too noisy."""
        plan, client = self._plan, visited.client
        where = {
            "server": visited.name,
            "repeat": repeat,
            "prompt_words": num_words,
            "concurrency": concurrency,
        }
        lengths = {"num_words": num_words, "output_tokens": plan.output_tokens}
        for attempt in range(self._noise.max_attempts):
            seed = self._point_seed(repeat, num_words, concurrency, attempt)
            await warm_up(client, plan.warmup, concurrency, seed, **lengths)
            num_requests = plan.num_requests.get(concurrency)
            workload = peers_workload(concurrency, seed, num_requests, **lengths)
            run = await measure(workload, client, interrupt=interrupt, pids=[visited.launch.pid])
            if run["partial"] or interrupt.requested:
                raise asyncio.CancelledError
            quiet = run["cpu"]["others"] <= self._noise.max_others
            mark = "" if quiet else "  NOISY"
            self._session.say(_line(run, visited.name, num_words, concurrency, mark))
            if quiet or attempt + 1 == self._noise.max_attempts:
                break
            self.document["discarded"].append(where | {"cpu": run["cpu"]})
        self.document["runs"].append(where | {"quiet": quiet} | run)

    def _point_seed(self, *which: int) -> int:
        """A seed that all servers share and no other run of the comparison has."""
        return random.Random(f"{self._session.seed} {which}").randrange(2**40)


async def _idle_share(pid: int, duration_s: float) -> float:
    """The share of the machine that an idle server takes.

    Measured after a pause of the same length, because threads spin for a while after work.
    """
    await asyncio.sleep(duration_s)
    before = CpuTimes.read([pid])
    await asyncio.sleep(duration_s)
    return cpu_shares(before, CpuTimes.read([pid]))["watched"]


def _line(run: dict[str, Any], name: str, num_words: int, concurrency: int, mark: str) -> str:
    summary, cpu = run["summary"], run["cpu"]
    ttft, itl = summary["ttft_ms"] or {}, summary["itl_ms"] or {}
    return (
        f"  {name}, {num_words} words, c={concurrency}: {summary['output_tok_s']:.1f} tok/s, "
        f"TTFT p50 {ttft.get('p50', 0):.0f} ms, ITL p50 {itl.get('p50', 0):.1f} ms, "
        f"{summary['num_failed']} failed, others {cpu['others']:.1%} of CPU{mark}"
    )
