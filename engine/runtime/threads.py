"""Threads of the process that computes on a CPU."""

import os
import time
from collections.abc import Callable

import structlog

from engine.runtime.allocator import keep_freed_memory
from engine.runtime.run_queue import RunQueue
from engine.runtime.side_work import SIDE_WORK, SideWork
from engine.runtime.thread_count import ThreadCount

SPIN_COUNT = 20_000
"""Iterations that an OpenMP thread spins at a barrier before it sleeps."""
IDLE_S = 1.0
"""Seconds without a step after which earlier measurements no longer count."""

log = structlog.get_logger(__name__)


def prepare_process() -> None:
    """Set the environment that OpenMP reads when torch is imported. Call it before that.

    By default threads of PyTorch's own operations that meet at a barrier spin for milliseconds.
    With as many threads as cores and a server process beside them, a spinning thread keeps the one
    it waits for from running, and each parallel region takes a scheduler's time slice. With a short
    spin they sleep instead.
    """
    os.putenv("GOMP_SPINCOUNT", str(SPIN_COUNT))


def cores_to_compute(cores: int) -> int:
    """Return the number of cores to compute on: one less if there are more than two, which is left
    to HTTP and tokenising."""
    return cores - 1 if cores > 2 else cores


def leave_a_core() -> None:
    """Keep off the first core where HTTP gets it (`cores_to_compute`).

    Threads that are started afterwards inherit this, and by default one computes on each core left.
    """
    cores = sorted(os.sched_getaffinity(0))
    left = cores[-cores_to_compute(len(cores)) :]
    if left != cores:
        os.sched_setaffinity(0, left)


def limit_threads(num_threads: int) -> None:
    """Use `num_threads` for each operation, and keep freed memory for the next step."""
    import torch

    torch.set_num_threads(num_threads)
    keep_freed_memory()


class ComputeThreads:
    """The threads that a worker's steps compute with: fewer while others keep the cores busy.

    Used by the thread that steps. Results do not depend on the number of threads. Work that is
    given to other threads leaves the steps a thread less.

    Args:
        most: the number to use when the machine is free, and at the start.
        run_queue: measures how long threads wait for a core; None keeps the number fixed.
        use: sets the number of threads of the next operations.
        clock: seconds, never going back.
        side_work: the side work of this process.
    """

    def __init__(
        self,
        most: int,
        run_queue: RunQueue | None,
        use: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
        side_work: SideWork = SIDE_WORK,
    ) -> None:
        self._count = ThreadCount(most)
        self._used = most
        self._side_work = side_work
        side_work.begins = self._leave_some
        self._run_queue = run_queue
        self._use = use
        self._clock = clock
        self._logged = most
        self._began_s = self._ended_s = clock()

    @property
    def num_threads(self) -> int:
        """The number of threads that steps use now."""
        return self._count.now

    def before_step(self) -> None:
        """Note that a step begins; after a pause, start counting again."""
        ended_s, self._began_s = self._ended_s, self._clock()
        if self._run_queue is not None and self._began_s - ended_s > IDLE_S:
            # Waiting of threads that worked between the steps is no sign.
            self._run_queue.waited_s()
            self._count.start_window()
        self._leave_some()

    def after_step(self) -> None:
        """Note that a step has ended. Now and then, judge and change the number for the next
        step."""
        self._ended_s = self._clock()
        if self._run_queue is None or not self._count.is_due(self._ended_s - self._began_s):
            return
        self._count.judge(self._ended_s, self._run_queue.waited_s())
        self._leave_some()
        if self._count.lasting != self._logged:
            self._logged = self._count.lasting
            log.info("number of threads changed", threads=self._logged, most=self._count.most)

    def _leave_some(self) -> None:
        """Leave threads for work beside the steps."""
        if self._run_queue is not None:
            self._take(max(1, self._count.now - self._side_work.num_running))

    def _take(self, threads: int) -> None:
        if threads != self._used:
            self._used = threads
            self._use(threads)


def compute_threads(*, adaptive: bool) -> ComputeThreads:
    """Return the threads of this process as `limit_threads` set them. With `adaptive`, their number
    follows the machine's load, if Linux says how long threads wait for a core."""
    import torch

    run_queue = RunQueue() if adaptive and torch.get_num_threads() > 1 else None
    if run_queue is not None and not run_queue.is_counted:
        log.info(
            "this system does not report how long threads wait for a core; their number stays fixed"
        )
        run_queue = None
    return ComputeThreads(torch.get_num_threads(), run_queue, torch.set_num_threads)
