"""The memory of tensors, kept in a file while their process sleeps.

The kernel holds the file in its page cache as long as it has room, so that waking mostly copies
memory. Addresses stay, and nothing is rebuilt: what a tensor had, it has again, bit for bit.
"""

import ctypes
import gc
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from engine.runtime.allocator import LASTING_BYTES
from engine.runtime.huge_pages import large_private_ranges, unwritten_file_ranges

_PAGE = mmap.PAGESIZE
_PRESENT = np.uint64(3 << 62)
"""The bits of a page in `/proc/self/pagemap` that is in memory or swapped out."""
_PIECE_BYTES = 1 << 30
_TMPFS, _RAMFS = 0x01021994, 0x858458F6

IN_PLACE = threading.Lock()
"""Held by whoever reads tensors beside the engine, while it reads, and by memory that is parked."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages beside each other, and their place in the file."""

    start: int
    size: int
    offset: int


class ParkedMemory:
    """The contents of this process's large CPU tensors, in a file without a name.

    From its making until `restore` it holds `IN_PLACE`, and no thread may use a tensor: its pages
    are empty then. Empty pages are left out, so an unused pool takes no room.

    Args:
        folder: where the file lies.
        most_bytes: the largest file.

    Raises:
        OSError: the file would be too large, or cannot be written. Then nothing has changed.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        IN_PLACE.acquire()
        try:
            self._park(folder, most_bytes)
        except BaseException:
            IN_PLACE.release()
            raise

    def _park(self, folder: Path, most_bytes: int) -> None:
        self._runs: list[_Run] = []
        self.num_bytes = 0
        tensors = _tensor_ranges()
        ranges = _within(large_private_ranges(_PAGE), tensors)
        for start, size in _written_runs(ranges):
            self._runs.append(_Run(start, size, self.num_bytes))
            self.num_bytes += size
        if _is_in_memory(folder):
            raise OSError(f"files in {folder} are in memory")
        if self.num_bytes > most_bytes:
            raise OSError(f"{self.num_bytes} bytes do not fit into a file of {most_bytes}")
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it stays open
        try:
            for run in self._runs:
                for piece, offset in _pieces(run):
                    _whole(os.pwrite(self._file.fileno(), piece, offset), piece)
        except OSError:
            self._file.close()
            raise
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
        # Pages of mapped files that nobody has written to can be read again from there.
        for start, size in ranges + _within(unwritten_file_ranges(), tensors):
            libc.madvise(start, size, mmap.MADV_DONTNEED)
        libc.malloc_trim(0)

    def restore(self) -> None:
        """Read everything back, and remove the file.

        Raises:
            OSError: it cannot be read; the process must end.
        """
        with self._file as file:
            for run in self._runs:
                for piece, offset in _pieces(run):
                    _whole(os.preadv(file.fileno(), [piece], offset), piece)
        IN_PLACE.release()


def _is_in_memory(folder: Path) -> bool:
    """Whether files in a folder take memory."""
    facts = ctypes.create_string_buffer(256)  # a `struct statfs`, which begins with the type
    ctypes.CDLL(None).statfs(os.fsencode(folder), facts)
    return int.from_bytes(facts.raw[:8], sys.byteorder) in (_TMPFS, _RAMFS)


def _within(
    mappings: list[tuple[int, int]], tensors: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """(start, size) of the tensors' pages in some mappings."""
    found = []
    for start, size in tensors:
        for first, length in mappings:
            low, high = max(start, first), min(start + size, first + length)
            if low < high:
                found.append((low, high - low))
    return found


def _written_runs(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (start, size) of the pages in the ranges that hold anything."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for start, size in ranges:
            pagemap.seek(start // _PAGE * 8)
            yield from _present(start, pagemap.read(size // _PAGE * 8))


def _present(start: int, pages: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, size) of the runs of pages that exist and are not empty."""
    for first, end in _runs((np.frombuffer(pages, np.uint64) & _PRESENT) != 0):
        low = start + first * _PAGE
        contents = np.frombuffer(_memory(low, (end - first) * _PAGE), np.uint64)
        for some, rest in _runs(np.bitwise_or.reduce(contents.reshape(end - first, -1), 1) != 0):
            yield low + some * _PAGE, (rest - some) * _PAGE


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The first and the end of each run of flags that are set."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(first, end) for first, end in edges.reshape(-1, 2).tolist()]


def _tensor_ranges() -> list[tuple[int, int]]:
    """(start, size) of the whole pages of each large CPU tensor's storage, without overlaps."""
    gc.unfreeze()
    found = set()
    for thing in gc.get_objects():
        # Not isinstance, which asks the object, and some objects import modules then.
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            if storage.device.type == "cpu" and storage.nbytes() >= LASTING_BYTES:
                start = -(-storage.data_ptr() // _PAGE) * _PAGE
                end = (storage.data_ptr() + storage.nbytes()) // _PAGE * _PAGE
                found.add((start, end - start))
    gc.freeze()
    apart: list[tuple[int, int]] = []
    for start, size in sorted(found):
        first, length = apart[-1] if apart else (0, 0)
        if start < first + length:
            apart[-1] = first, max(first + length, start + size) - first
        else:
            apart.append((start, size))
    return apart


def _pieces(run: _Run) -> Iterator[tuple[memoryview, int]]:
    """The run's memory in pieces that one system call can move, each with its place in the file."""
    memory = _memory(run.start, run.size)
    for first in range(0, run.size, _PIECE_BYTES):
        yield memory[first : first + _PIECE_BYTES], run.offset + first


def _memory(start: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(start)).cast("B")


def _whole(num_moved: int, piece: memoryview) -> None:
    if num_moved != len(piece):
        raise OSError(f"{num_moved} of {len(piece)} bytes could be moved")
