"""Measures the speed of served formats and the memory of their workers.

All servers of a model run at once, and all but one are idle, so that formats can take turns every
few seconds. The machine's better and worse minutes thus affect all of them.
"""

import asyncio
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.client import CompletionClient, Target
from loadtest.drive import drive, warm_up
from loadtest.launch import ServerCommand, launched
from loadtest.metrics import summarise
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.processes import PROC, process_trees
from loadtest.workload import peers_workload
from tools.quantization_table.formats import Format
from tools.quantization_table.quality import POOL_GIB

NUM_REQUESTS = {1: 3, 16: 16}
"""The number of requests, by the number of clients."""
FIRST_PORT = 8240
_WARMUP_TOKENS = 4
_SETTLED_BYTES = 1 << 20


@dataclass(slots=True)
class Served:
    """A format that is being served."""

    format: Format
    client: CompletionClient
    pid: int
    log: Path

    async def warm_up(self, seed: int) -> None:
        for clients in NUM_REQUESTS:
            await warm_up(self.client, clients, clients, seed, output_tokens=_WARMUP_TOKENS)

    async def run(self, clients: int, seed: int) -> dict[str, float]:
        """Measure tokens a second and the share of the machine that other processes took.

        Raises:
            RuntimeError: a request fails.
        """
        workload = peers_workload(clients, seed, NUM_REQUESTS[clients])
        before = CpuTimes.read([self.pid])
        outcome = await drive(workload, self.client)
        shares = cpu_shares(before, CpuTimes.read([self.pid]))
        summary = summarise(outcome.records, outcome.wall_s, outcome.num_planned)
        if summary["num_failed"] or summary["num_short"]:
            raise RuntimeError(f"{self.format.name}: {summary['errors'] or 'short answers'}")
        return {"tokens_per_s": summary["output_tok_s"], "others": shares["others"]}

    def warnings(self) -> list[dict[str, Any]]:
        """The warnings in the server's log so far."""
        lines = self.log.read_text(errors="replace").splitlines()
        events = (json.loads(line) for line in lines if line.startswith("{"))
        return [event for event in events if event.get("level") == "warning"]

    def memory(self) -> dict[str, int]:
        """Bytes of the worker, and of the process that speaks HTTP."""
        found = {"worker_bytes": 0, "front_bytes": 0}
        for stat in process_trees([self.pid]):
            command = (PROC / str(stat.pid) / "cmdline").read_bytes()
            found["worker_bytes" if b"engine.worker.loop" in command else "front_bytes"] += (
                process_bytes(stat.pid)
            )
        return found

    async def settled_memory(self) -> dict[str, int]:
        """The memory once it has stopped growing."""
        before = 0
        while abs((now := self.memory())["worker_bytes"] - before) > _SETTLED_BYTES:
            before = now["worker_bytes"]
            await asyncio.sleep(0.5)
        return now


def process_bytes(pid: int) -> int:
    """A process's PSS, but with all pages of mapped files counted in full, as if it shared its
    libraries with no other process. Many servers at once do share them."""
    text = (PROC / str(pid) / "smaps_rollup").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return 1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"] + kib["Rss"] - kib["Anonymous"])


async def measure_speed(
    formats: Sequence[tuple[Format, Path]],
    *,
    seconds: float,
    rounds: int,
    seed: int,
    logs: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure tokens a second of every round, memory and warnings, by the formats' names.

    Args:
        seconds: limit for everything, starts and stops included; rounds after the first that
            would exceed it are left out.
        rounds: the most rounds.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        all_served = []
        for place, (served_format, path) in enumerate(formats):
            all_served.append(await serve(stack, served_format, path, FIRST_PORT + place, logs))
            await all_served[-1].warm_up(seed)
            say(f"{served_format.name} serves after {time.monotonic() - started:.0f} s")
        found: dict[str, Any] = {
            one.format.name: {
                **await one.settled_memory(),
                "warnings": one.warnings(),
                "runs": {clients: [] for clients in NUM_REQUESTS},
            }
            for one in all_served
        }
        longest = 0.0
        for number in range(rounds):
            begun = time.monotonic()
            if number and begun - started + longest > seconds - len(all_served):
                break
            shift = number % len(all_served)
            for one in all_served[shift:] + all_served[:shift]:
                for clients in NUM_REQUESTS:
                    run = await one.run(clients, seed + 1 + number)
                    found[one.format.name]["runs"][clients].append(run)
            longest = max(longest, time.monotonic() - begun)
            say(f"round {number + 1} took {time.monotonic() - begun:.0f} s")
    return found


async def measure_memory(
    formats: Sequence[tuple[Format, Path]], *, logs: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the bytes of the processes, one server after the other, by the formats' names."""
    found = {}
    for one, path in formats:
        async with AsyncExitStack() as stack:
            served = await serve(stack, one, path, FIRST_PORT, logs)
            await warm_up(served.client, 1, 1, 0)
            found[one.name] = await served.settled_memory()
        say(f"{one.name}: {found[one.name]}")
    return found


async def serve(stack: AsyncExitStack, one: Format, path: Path, port: int, logs: Path) -> Served:
    arguments = {
        "--model": f"measured={path}",
        "--port": port,
        "--device": "cpu",
        "--dtype": "bfloat16",
        "--quantization": one.quantization,
        "--kv-cache-memory-gib": POOL_GIB,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    command = shlex.join(["exec", sys.executable, "-m", "server", "serve", *words])
    url = f"http://127.0.0.1:{port}/v1"
    server = ServerCommand(f"{port}", command, url, "measured")
    launch = await stack.enter_async_context(launched(server, server.log_path(logs)))
    client = CompletionClient(Target(url, "measured"))
    return Served(one, client, launch.pid, server.log_path(logs))
