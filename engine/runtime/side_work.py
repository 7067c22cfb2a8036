"""What threads of a worker do beside its steps, such as reading an adapter.

A step whose threads take all cores is held up by one more: whichever of them has no core keeps a
piece of each operation from being finished. So steps leave it one (`engine.runtime.threads`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

Result = TypeVar("Result")


class SideWork:
    """Counts the threads that are at it. Thread-safe.

    Attributes:
        begins: called in the thread that gives work away, before that may begin.
    """

    def __init__(self) -> None:
        self.begins: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._num_running = 0

    @property
    def num_running(self) -> int:
        return self._num_running

    def submit(self, executor: Executor, work: Callable[[], Result]) -> "Future[Result]":
        """Have it done in one of the executor's threads."""
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
"""Of this process."""
