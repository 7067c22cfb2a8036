"""The time that this process's threads have waited for a core although they could have run.

Linux counts it for each thread: the second number of `/proc/self/task/<id>/schedstat`, in
nanoseconds (kernel documentation, `sched-stats.rst`).
"""

import os
from pathlib import Path

TASKS = Path("/proc/self/task")


class RunQueue:
    """Adds up the threads' waiting time, if the kernel counts it (`is_counted`).

    Args:
        tasks: a folder per thread; for tests.
    """

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._seen: dict[str, int] = {}
        self.waited_s()

    @property
    def is_counted(self) -> bool:
        """Whether this system counts waiting time; some sandboxes have no such files."""
        return bool(self._seen)

    def waited_s(self) -> float:
        """Return the seconds waited since the last call by all threads together. Threads that have
        ended since do not count, and waiting threads count once they run."""
        now = dict(self._read())
        waited_ns = sum(waited - self._seen.get(task, 0) for task, waited in now.items())
        self._seen = now
        return waited_ns / 1e9

    def _read(self) -> list[tuple[str, int]]:
        found = []
        try:
            names = os.listdir(self._tasks)
        except OSError:
            return []
        for name in names:
            try:
                numbers = (self._tasks / name / "schedstat").read_bytes().split()
                found.append((name, int(numbers[1])))
            except (OSError, IndexError, ValueError):
                continue  # the thread has ended meanwhile, or the kernel does not count
        return found
