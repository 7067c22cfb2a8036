"""Threads and memory of the process that computes on a CPU."""

import ctypes
import os

import structlog

SPIN_COUNT = 20_000
"""Iterations that an OpenMP thread spins at a barrier before it sleeps."""
MMAP_THRESHOLD_BYTES = 64 << 20
TRIM_THRESHOLD_BYTES = 256 << 20

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

log = structlog.get_logger(__name__)


def prepare_process() -> None:
    """Set what OpenMP reads when torch is imported. Call it before that.

    Threads that meet at a barrier spin, by default for milliseconds. With as many threads as cores
    and a server process beside them, a spinning thread keeps the one it waits for from running, and
    each parallel region takes a scheduler's time slice. With a short spin they sleep instead.
    """
    os.putenv("GOMP_SPINCOUNT", str(SPIN_COUNT))


def leave_a_core() -> None:
    """Keep off the first core where there are more than two: HTTP and tokenising get it.

    Threads that are started afterwards inherit that, and by default one computes on each core left.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 2:
        os.sched_setaffinity(0, cores[1:])


def limit_threads(num_threads: int) -> None:
    """Use `num_threads` for each operation, and keep freed memory for the next step."""
    import torch

    torch.set_num_threads(num_threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """A step allocates and frees the same few megabytes; giving them back to the kernel each time
    would cost a page fault per 4 KiB, more than the arithmetic on them."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        log.debug("no glibc here: its allocator is not tuned")
        return
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
