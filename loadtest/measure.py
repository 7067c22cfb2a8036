"""Drives a workload while watching memory and CPU, and describes the run as a document."""

from collections.abc import Callable, Sequence
from typing import Any

from loadtest.client import CompletionClient
from loadtest.drive import Client, Outcome, Record, drive
from loadtest.interrupt import Interrupt
from loadtest.metrics import Slo, summarise
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.processes import MemoryWatch
from loadtest.record import RequestRecord
from loadtest.workload import Planned, PlannedRequest, Workload


async def measure(
    workload: Workload[PlannedRequest],
    client: CompletionClient,
    *,
    interrupt: Interrupt,
    pids: Sequence[int],
    slo: Slo | None = None,
    on_end: Callable[[RequestRecord], None] | None = None,
) -> dict[str, Any]:
    """Drive `workload` and describe what happened: workload, summary, cpu, memory, requests.

    `pids` are the roots of the server's process trees. `partial` is true after an interrupt.
    """
    outcome, load = await drive_watched(
        workload, client, interrupt=interrupt, pids=pids, on_end=on_end
    )
    return {
        "workload": {
            "name": workload.name,
            "endpoint": client.target.endpoint,
            "concurrency": workload.concurrency,
            "keep_alive": client.target.keep_alive,
            "temperature": client.target.temperature,
            "ignore_eos": client.target.ignore_eos,
            "extra_body": client.target.extra_body,
            **workload.parameters,
        },
        "partial": outcome.interrupted,
        "summary": summarise(outcome.records, outcome.wall_s, outcome.num_planned, slo),
        **load,
        "requests": [record.to_row() for record in outcome.records],
    }


async def drive_watched(
    workload: Workload[Planned],
    client: Client[Planned, Record],
    *,
    interrupt: Interrupt,
    pids: Sequence[int],
    on_end: Callable[[Record], None] | None = None,
) -> tuple[Outcome[Record], dict[str, Any]]:
    """Drive `workload`. Also returns `cpu` and `memory` of the machine and the watched trees."""
    memory = MemoryWatch(tuple(pids))
    async with memory.watching():
        before = CpuTimes.read(pids)
        outcome = await drive(workload, client, interrupt=interrupt, on_end=on_end)
        after = CpuTimes.read(pids)
    return outcome, {"cpu": cpu_shares(before, after), "memory": memory.to_json()}
