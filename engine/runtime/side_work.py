"""The work of a worker's threads beside its steps, such as reading an adapter.

An extra thread delays a step whose threads use all cores: whichever of them has no core delays the
end of each operation. Steps therefore leave a core to it (`engine.runtime.threads`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

Result = TypeVar("Result")


class SideWork:
    """Counts the threads that do side work. Thread-safe.

    Attributes:
        begins: called in the thread that submits work, before the work may begin.
    """

    def __init__(self) -> None:
        self.begins: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._num_running = 0

    @property
    def num_running(self) -> int:
        return self._num_running

    def submit(self, executor: Executor, work: Callable[[], Result]) -> "Future[Result]":
        """Run the work in one of the executor's threads."""
        self._add(1)
        self.begins()
        try:
            doing = executor.submit(work)
        except BaseException:
            self._add(-1)
            raise
        doing.add_done_callback(lambda _: self._add(-1))
        return doing

    def _add(self, threads: int) -> None:
        with self._lock:
            self._num_running += threads


SIDE_WORK = SideWork()
"""The side work of this process."""
