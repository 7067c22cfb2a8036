"""Process trees and their CPU time and memory, read from /proc (Linux)."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """A line of /proc/PID/stat. CPU seconds include those of children already waited for."""

    pid: int
    parent: int
    session: int
    cpu_s: float
    is_zombie: bool
    own_cpu_s: float
    """CPU seconds of the process alone."""

    @classmethod
    def read(cls, pid: int) -> "ProcessStat | None":
        """Read a process's line; None if the process is gone."""
        try:
            text = (PROC / str(pid) / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces
        user, system, *of_children = (int(ticks) / _TICKS_PER_S for ticks in fields[11:15])
        return cls(
            pid=pid,
            parent=int(fields[1]),
            session=int(fields[3]),
            cpu_s=user + system + sum(of_children),
            is_zombie=fields[0] in "ZX",
            own_cpu_s=user + system,
        )


def process_trees(roots: Iterable[int]) -> list[ProcessStat]:
    """The roots, their descendants, and all processes in a session that a root leads.

    The session catches children that outlived their parent and were handed to init.
    """
    stats = [
        stat
        for entry in PROC.iterdir()
        if entry.name.isdigit() and (stat := ProcessStat.read(int(entry.name))) is not None
    ]
    wanted = set(roots)
    leaders = {stat.pid for stat in stats if stat.pid in wanted and stat.session == stat.pid}
    leaders |= {pid for pid in wanted if all(stat.pid != pid for stat in stats)}
    members = {stat.pid: stat for stat in stats if stat.pid in wanted or stat.session in leaders}
    while found := [s for s in stats if s.parent in members and s.pid not in members]:
        members |= {stat.pid: stat for stat in found}
    return list(members.values())


def pss_bytes(pid: int) -> int:
    """Proportional set size: private pages plus a fair share of the shared ones. 0 when gone.

    Raises PermissionError for another user's process.
    """
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@dataclass(slots=True)
class MemoryWatch:
    """Measures the PSS of some process trees repeatedly; keeps the largest and the last. Pages that
    processes share count once."""

    roots: tuple[int, ...]
    peak_bytes: int = 0
    last_bytes: int = 0
    peak_below_bytes: int = 0
    """The largest PSS of the trees without their roots."""
    num_measured: int = 0

    def measure(self) -> None:
        sizes = {stat.pid: pss_bytes(stat.pid) for stat in process_trees(self.roots)}
        self.last_bytes = sum(sizes.values())
        self.peak_bytes = max(self.peak_bytes, self.last_bytes)
        below = sum(size for pid, size in sizes.items() if pid not in self.roots)
        self.peak_below_bytes = max(self.peak_below_bytes, below)
        self.num_measured += 1

    @contextlib.asynccontextmanager
    async def watching(
        self, interval_s: float = 2.0, most_share: float = 0.01
    ) -> AsyncIterator[None]:
        """Measure in the background, and at the end.

        Raises ValueError for a root that does not exist, before anything is measured.

        The kernel walks the page tables of every process for this, about ten milliseconds per GiB.
        So it runs in a thread, to delay no time stamp, and seldom enough to take less than
        `most_share` of a core, so that servers with much memory are not slowed more than others.
        """
        for pid in self.roots:
            if ProcessStat.read(pid) is None:
                raise ValueError(f"there is no process {pid} to watch")
        task = None
        if self.roots:
            task = asyncio.create_task(self._repeat(interval_s, most_share))
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                self.measure()

    async def _repeat(self, interval_s: float, most_share: float) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.to_thread(self.measure)
            await asyncio.sleep(max(interval_s, (time.perf_counter() - started) / most_share))

    def to_json(self) -> dict[str, float] | None:
        if not self.num_measured:
            return None
        return {
            "pss_mib": round(self.last_bytes / 2**20, 1),
            "peak_pss_mib": round(self.peak_bytes / 2**20, 1),
        }
