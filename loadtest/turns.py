"""Programs that do the same work in turns, and the table of their times."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from loadtest.markdown import number, origin, ratio, table, with_range
from loadtest.noise import CpuTimes, cpu_shares

Work = Callable[[], float | None]
"""Does the work once. Returns the seconds it took if it measures them itself."""


@dataclass(slots=True)
class Turn:
    """One program and its measured runs.

    Attributes:
        seconds: duration of each run.
        peak_mib: peak memory, if known.
    """

    name: str
    work: Work = field(repr=False)
    seconds: list[float] = field(default_factory=list)
    peak_mib: int | None = None

    def run(self) -> float:
        started_s = time.perf_counter()
        measured_s = self.work()
        return time.perf_counter() - started_s if measured_s is None else measured_s

    def to_json(self) -> dict[str, Any]:
        seconds = [round(one, 4) for one in self.seconds]
        peak = {} if self.peak_mib is None else {"peak_mib": self.peak_mib}
        return {"name": self.name, "seconds": seconds, **peak}


def take_turns(turns: Sequence[Turn], rounds: int, roots: Sequence[int] = ()) -> dict[str, float]:
    """Run each program once to load and warm up, then `rounds` times in turns.

    Args:
        roots: other processes that take part in the work.

    Returns:
        The shares of the CPU during the measured rounds (see `loadtest.noise`).
    """
    for turn in turns:
        turn.run()
    before = CpuTimes.read((os.getpid(), *roots))
    for _ in range(rounds):
        for turn in turns:
            turn.seconds.append(turn.run())
    return cpu_shares(before, CpuTimes.read((os.getpid(), *roots)))


def turns_section(document: dict[str, Any]) -> str:
    """A table of all tasks; the first program of a task has the relative time 1."""
    rows = []
    for task in document["tasks"]:
        ours = median(task["runs"][0]["seconds"])
        for place, run in enumerate(task["runs"]):
            milliseconds = [1000 * seconds for seconds in run["seconds"]]
            rows.append(
                [
                    task["name"] if place == 0 else "",
                    run["name"],
                    with_range(milliseconds),
                    ratio(median(run["seconds"]), ours),
                    number(run.get("peak_mib"), 0),
                ]
            )
    heads = ["task", "program", "ms (range)", "relative time", "peak memory MiB"]
    others = max(task["cpu"]["others"] for task in document["tasks"])
    note = (
        f"Medians of {document['rounds']} runs each; other processes took at most {others:.1%} of "
        "the CPU in a task."
    )
    return "\n\n".join([origin(document), table(heads, rows, num_text_columns=2), note])
