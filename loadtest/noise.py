"""Measures how much CPU processes other than the server and this one take."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.processes import PROC, process_trees


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds since boot: of the machine, idle, taken by the hypervisor, and of some trees."""

    at_s: float
    total_s: float
    idle_s: float
    steal_s: float
    watched_s: float
    own_s: float

    @classmethod
    def read(cls, roots: Iterable[int] = ()) -> "CpuTimes":
        with (PROC / "stat").open() as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        seconds = [tick / os.sysconf("SC_CLK_TCK") for tick in ticks]
        roots = tuple(roots)
        watched = process_trees(roots) if roots else []
        return cls(
            at_s=time.perf_counter(),
            total_s=sum(seconds),
            idle_s=seconds[3] + seconds[4],
            steal_s=seconds[7],
            watched_s=sum(stat.cpu_s for stat in watched if stat.pid != os.getpid()),
            own_s=time.process_time(),
        )


def cpu_shares(before: CpuTimes, after: CpuTimes) -> dict[str, float]:
    """Shares of the whole machine (1 = every core busy) between two readings.

    `others` is the busy time of processes that are neither watched nor this one; without watched
    processes it includes the server. `steal` is the time that the hypervisor gave to others.
    """
    total = after.total_s - before.total_s
    if total <= 0:
        return {"watched": 0.0, "loadtest": 0.0, "others": 0.0, "steal": 0.0}
    steal = after.steal_s - before.steal_s
    busy = total - (after.idle_s - before.idle_s) - steal
    watched = after.watched_s - before.watched_s
    own = after.own_s - before.own_s
    shares = {
        "watched": watched,
        "loadtest": own,
        "others": max(0.0, busy - watched - own),
        "steal": steal,
    }
    return {name: round(seconds / total, 4) for name, seconds in shares.items()}
