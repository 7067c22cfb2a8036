"""How glibc's allocator serves a process that computes on a CPU."""

import contextlib
import ctypes
from collections.abc import Iterator

import structlog

MMAP_THRESHOLD_BYTES = 64 << 20
TRIM_THRESHOLD_BYTES = 256 << 20
LASTING_BYTES = 256 << 10
"""Allocations from this size on that are meant to last are mapped alone."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

log = structlog.get_logger(__name__)


def keep_freed_memory() -> None:
    """Keep freed memory, since a step allocates and frees the same few megabytes; giving them back
    to the kernel each time would cost a page fault per 4 KiB, more than the arithmetic on them."""
    _set(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    _set(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
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
