"""Large pages for the weights of a CPU model.

A step reads all weights once. With 4 KiB pages the processor walks the page table for each of them,
and its prefetchers stop at every page's end: a decode step of a 135M model took 22.8 ms, with 2 MiB
pages 17.5 ms (2 cores of a Sapphire Rapids class Xeon, virtual machine).
"""

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HUGE_PAGE_BYTES = 2 << 20
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
MADV_COLLAPSE = 25
"""A Linux 6.1 constant: move existing memory to huge pages now. Python has no name for it yet."""
MADV_POPULATE_READ = 22
"""A Linux 5.14 constant: read and map all pages now."""


def use_huge_pages() -> int:
    """Give freed memory back, and ask the kernel to hold this process's large private memory in
    huge pages.

    Call it when the weights are loaded and before memory is mapped that should stay untouched.
    Where the system cannot do it, nothing changes.

    Returns:
        Bytes that were moved.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)  # loading frees more than it keeps, and huge pages would hold all of it
        madvise = libc.madvise
        madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        return sum(
            size
            for start, size in large_private_ranges()
            if madvise(start, size, mmap.MADV_HUGEPAGE) == 0
            and madvise(start, size, MADV_COLLAPSE) == 0
        )
    return 0


def lazy_zeros(num_bytes: int, *, huge: bool = False) -> mmap.mmap:
    """Map memory that is allocated only when it is touched, so it may be larger than the machine's.

    Args:
        huge: whether to use huge pages where the kernel has them.

    Raises:
        OSError: the process may not have that much address space.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, num_bytes, flags=flags)
    if huge:
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def are_pages_large(memory: "torch.Tensor") -> bool:
    """Whether nearly all of a mapped file lies in huge pages. The whole file is read."""
    start, size = memory.data_ptr(), memory.nbytes
    whole = size // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        if madvise(start, whole, MADV_POPULATE_READ) == 0:
            return _huge_file_bytes(start) >= 0.9 * size
    return False


def _huge_file_bytes(start: int) -> int:
    """The bytes in huge pages of the mapped file that begins at an address."""
    return sum(one["FilePmdMapped"] for one in _mappings() if one["start"] == start)


def unwritten_file_ranges() -> list[tuple[int, int]]:
    """(start, size) of the mappings of files in which this process has changed nothing."""
    return [
        (one["start"], one["Size"]) for one in _mappings() if one["inode"] and one["Anonymous"] == 0
    ]


def _mappings() -> Iterator[dict[str, int]]:
    """Where each of this process's mappings begins, its file's inode and its sizes in bytes."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name.endswith(":"):
            with contextlib.suppress(ValueError, IndexError):  # flags have no size
                found[name[:-1]] = int(rest.split()[0]) << 10
            continue
        if found:
            yield found
        found = {"start": int(name.partition("-")[0], 16), "inode": int(rest.split()[3])}
    if found:
        yield found


def large_private_ranges(page_bytes: int = HUGE_PAGE_BYTES) -> list[tuple[int, int]]:
    """(start, size) of the whole pages inside anonymous writable mappings."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, permissions, *rest = line.split(maxsplit=5)
        name = rest[3] if len(rest) > 3 else ""
        if permissions != "rw-p" or name not in ("", "[heap]"):
            continue
        first, last = (int(address, 16) for address in place.split("-"))
        start = -(-first // page_bytes) * page_bytes
        size = last // page_bytes * page_bytes - start
        if size > 0:
            found.append((start, size))
    return found
