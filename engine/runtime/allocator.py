"""How glibc's allocator serves a process that computes on a CPU."""

import contextlib
import ctypes
from collections.abc import Iterator

import structlog

MMAP_THRESHOLD_BYTES = 64 << 20
LARGEST_MAP_BYTES = 1 << 30
"""The size from which a picture's maps are given back to the kernel. A decoder's layer at 512 px
takes 64 to 128 MiB, and took a third longer in memory that was mapped for it alone."""
TRIM_THRESHOLD_BYTES = 256 << 20
LASTING_BYTES = 256 << 10
"""Allocations from this size on that are meant to last are mapped alone."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

log = structlog.get_logger(__name__)


def keep_freed_memory(below_bytes: int = MMAP_THRESHOLD_BYTES) -> None:
    """Keep freed memory, since a step allocates and frees the same sizes; giving them back to the
    kernel each time would cost a page fault per 4 KiB, more than the arithmetic on them.

    Args:
        below_bytes: larger allocations are given back.
    """
    _set(_M_MMAP_THRESHOLD, below_bytes)
    _set(_M_TRIM_THRESHOLD, max(below_bytes, TRIM_THRESHOLD_BYTES))
    # Later threads would have arenas of their own, which return memory when it is freed.
    _set(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def lasting_memory() -> Iterator[None]:
    """Map the weights that are loaded meanwhile outside the heap. Between them, what loading frees
    would stay in the heap as holes: a fifth of a small model's memory, and more at some starts than
    at others."""
    _set(_M_MMAP_THRESHOLD, LASTING_BYTES)
    try:
        yield
    finally:
        _set(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _set(parameter: int, value: int) -> None:
    try:
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
    except (OSError, AttributeError):
        log.debug("glibc was not found; its allocator is not tuned")
