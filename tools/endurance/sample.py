"""What a server's processes hold, seen from outside, and what it says of its own work."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from loadtest.processes import PROC, process_trees, pss_bytes

_METRIC = re.compile(r'^tandem_(\w+)(?:\{[^}]*model_name="([^"]*)"[^}]*\})? (\S+)$')
_MODULE = re.compile(rb"run_module\('([\w.]+)'")
_KINDS = {
    b"engine.worker.loop": "worker",
    b"engine.text.template_child": "template",
    b"engine.llm.structure.reader_child": "reader",
    b"server.images.picture_child": "pictures",
}
WORK = re.compile(r"num_requests_(running|waiting)|kv_cache_usage_ratio|\w+_num_(running|waiting)")
"""Gauges that must be zero when nobody asks for anything."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the server."""

    pid: int
    parent: int
    kind: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a server.

    Attributes:
        pss: bytes of memory by kind of process; a page that is shared counts once.
        work: gauges of requests and blocks, by name, over all models.
    """

    at_s: float
    pss: dict[str, int] = field(default_factory=dict)
    descriptors: int = 0
    threads: int = 0
    processes: dict[str, int] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The series in which growth would show, by name."""
        memory = {f"memory of {kind}": count / 2**20 for kind, count in self.pss.items()}
        return {
            "memory": sum(self.pss.values()) / 2**20,
            **memory,
            "descriptors": self.descriptors,
            "threads": self.threads,
            "processes": sum(self.processes.values()),
        }


def processes_of(root: int) -> list[Process]:
    """The server and all that it started."""
    return [
        Process(stat.pid, stat.parent, "server" if stat.pid == root else _kind(stat.pid))
        for stat in process_trees([root])
        if not stat.is_zombie
    ]


def _kind(pid: int) -> str:
    with contextlib.suppress(OSError):
        found = _MODULE.search((PROC / str(pid) / "cmdline").read_bytes())
        if found:
            return _KINDS.get(found[1], found[1].decode())
    return "other"


def look(root: int, at_s: float, work: Mapping[str, float]) -> Sample:
    """A sample of the processes, with the work that `work_of` has found."""
    processes = processes_of(root)
    pss: Counter[str] = Counter()
    descriptors = threads = 0
    for process in processes:
        pss[process.kind] += pss_bytes(process.pid)
        with contextlib.suppress(OSError):  # it has just ended
            descriptors += len(os.listdir(PROC / str(process.pid) / "fd"))
            threads += len(os.listdir(PROC / str(process.pid) / "task"))
    counts = Counter(process.kind for process in processes)
    return Sample(at_s, dict(pss), descriptors, threads, dict(counts), dict(work))


async def work_of(url: str) -> dict[str, float]:
    """The gauges of work, summed over the models. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        response = await client.get(f"{url}/metrics")
        response.raise_for_status()
    return sums_over_models(response.text, WORK)


def sums_over_models(metrics: str, names: re.Pattern[str]) -> dict[str, float]:
    """The metrics of some names, without tandem_, in a page of `/metrics`."""
    sums: dict[str, float] = {}
    for line in metrics.splitlines():
        found = _METRIC.match(line)
        if found and names.fullmatch(found[1]):
            sums[found[1]] = sums.get(found[1], 0.0) + float(found[3])
    return sums


def marked(variable: str, value: str) -> list[int]:
    """The processes whose environment has this variable: those of a server and what it left."""
    wanted = f"{variable}={value}".encode()
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or it is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
