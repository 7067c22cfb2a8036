"""Keeps the panels of a checkpoint's weights in a file, which later starts map.

Arranging weights takes seconds per gigabyte and as much new memory as they have. A mapped file
takes neither while the kernel holds it in its page cache, and all processes that serve the model
share these pages: its replicas, and a worker that is started again.

A file holds the panels in the order in which a load asks for them, then a list of them:

    panels, each from a whole page on │ list, JSON │ its length, 8 bytes │ b"tandem panels 2\n"

It is written whole or not at all, by a thread, after the model has been loaded. Its name is made
from everything that its content depends on: the checkpoint's files as they lie on the disk, how
they are loaded, and the compiled operations, whose layout panels have.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from engine.runtime.huge_pages import are_pages_large
from engine.runtime.parked_memory import IN_PLACE
from engine.version import __version__
from engine.weights.digest import model_files
from engine.weights.source import Checkpoint
from engine.weights.verified_file import write_whole
from kernels import native
from kernels.linear_panels.panels import LANES, PanelFormat, Panels

SMALLEST_BYTES = 256 << 20
"""Fewer bytes of panels are made in less than a second, so they are not kept."""
FREE_SHARE = 0.05
"""The share of the disk that stays free."""

_END = b"tandem panels 2\n"
"""Files of the first kind may have been written while their model dozed, and be partly empty."""
_LENGTH_BYTES = 8
_PIECE_BYTES = 64 << 20
_ABANDONED_S = 24 * 3600
"""The age from which a file that is still being written is taken for one of a killed process."""

log = structlog.get_logger(__name__)


class PanelFile:
    """The panels of one load, in a folder of such files.

    Args:
        folder: need not exist.
        most_bytes: of all files in the folder.
        facts: what the panels depend on beside the files and the compiled operations.
    """

    def __init__(
        self, folder: Path, most_bytes: int, checkpoint: Checkpoint, facts: Sequence[object]
    ) -> None:
        self._path = folder / f"{_key(checkpoint, facts)}.panels"
        self._most_bytes = most_bytes
        self._known = _read(self._path)
        self._made: list[tuple[list[Any], torch.Tensor]] = []
        self._num_taken = 0

    def panels(
        self, form: PanelFormat, out_features: int, in_features: int, make: Callable[[], Panels]
    ) -> Panels:
        """The next panels: mapped, or from `make` if there is no file."""
        if self._known is not None:
            if (data := self._next(form, out_features, in_features)) is not None:
                return Panels(
                    format=form, out_features=out_features, in_features=in_features, data=data
                )
            log.warning("a file of packed panels does not match its model", path=str(self._path))
            self._forget()
        panels = make()
        self._made.append((_label(form, out_features, in_features), panels.data))
        return panels

    def write_later(self) -> None:
        """Write what had to be made, in a thread, if it is worth it."""
        made, self._made = self._made, []
        num_bytes = sum(data.nbytes for _, data in made)
        # After a file that did not fit, a part is missing; the next start writes all of it.
        if self._num_taken == 0 and SMALLEST_BYTES <= num_bytes <= self._most_bytes:
            threading.Thread(
                target=self._write, args=(made, num_bytes), name="panel file", daemon=True
            ).start()

    def _next(self, form: PanelFormat, out_features: int, in_features: int) -> torch.Tensor | None:
        """The next panels of the file; None if these are not meant."""
        assert self._known is not None
        if self._num_taken == len(self._known.listed):
            return None
        label, first = self._known.listed[self._num_taken]
        if label != _label(form, out_features, in_features):
            return None
        self._num_taken += 1
        return self._known.panels(first, (-(-out_features // LANES), form.panel_bytes(in_features)))

    def _forget(self) -> None:
        self._known = None
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _write(self, made: Sequence[tuple[list[Any], torch.Tensor]], num_bytes: int) -> None:
        started_s = time.monotonic()
        with contextlib.suppress(OSError):  # requests come first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(num_bytes)
            disk = shutil.disk_usage(self._path.parent)
            if disk.free - num_bytes < FREE_SHARE * disk.total:
                log.info("not enough disk space to keep packed panels", path=str(self._path.parent))
                return
            write_whole(self._path, _in_pieces(_content(made)))
        except OSError as error:
            log.warning("packed panels cannot be kept", path=str(self._path), reason=str(error))
            return
        seconds = round(time.monotonic() - started_s, 1)
        log.info("packed panels written", path=str(self._path), seconds=seconds)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the files that have not been used for longest, and rests of killed processes."""
        folder = self._path.parent
        for part in folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink()
        files = [(one.stat(), one) for one in folder.glob("*.panels")]
        used = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
            if used + num_bytes <= self._most_bytes:
                return
            path.unlink(missing_ok=True)  # processes that have mapped it keep it
            used -= stat.st_size


def _key(checkpoint: Checkpoint, facts: Sequence[object]) -> str:
    files = []
    for path in model_files(checkpoint).values():
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    parts = [__version__, native.library_path().name, files, [str(fact) for fact in facts]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _label(form: PanelFormat, out_features: int, in_features: int) -> list[Any]:
    return [str(form), out_features, in_features]


@dataclass(frozen=True, slots=True)
class _Known:
    """A whole file."""

    listed: list[tuple[list[Any], int]]
    """The label and first byte of each."""
    file: mmap.mmap
    has_large_pages: bool
    """Whether the kernel maps it in large pages. With small ones a step takes a tenth longer, so
    the panels are copied then."""

    def panels(self, first: int, shape: tuple[int, int]) -> torch.Tensor:
        """The panels that begin at that byte."""
        size = math.prod(shape)
        mapped = torch.frombuffer(self.file, dtype=torch.uint8, count=size, offset=first)
        if self.has_large_pages:
            return mapped.view(shape)
        copied = mapped.clone().view(shape)
        self.file.madvise(mmap.MADV_DONTNEED, first, size)  # else both would take memory
        return copied


def _read(path: Path) -> _Known | None:
    """Map a file; None if there is no whole one."""
    try:
        with path.open("rb") as opened:
            # Copy-on-write, since torch asks for memory that it may write to; nobody does.
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        end = len(file) - _LENGTH_BYTES - len(_END)
        length = int.from_bytes(file[end : end + _LENGTH_BYTES], "little")
        if file[-len(_END) :] != _END or length > end:
            return None
        read = json.loads(file[end - length : end])
        listed = [(label, int(first)) for label, first in read]
        os.utime(path)
        is_large = are_pages_large(torch.frombuffer(file, dtype=torch.uint8))
        if not is_large:  # looking has mapped all of it
            file.madvise(mmap.MADV_DONTNEED)
        return _Known(listed, file, is_large)
    except (OSError, ValueError, TypeError):
        return None


def _content(made: Sequence[tuple[list[Any], torch.Tensor]]) -> Iterator[bytes | memoryview]:
    """All of a file, in order."""
    listed, at = [], 0
    for label, data in made:
        memory = data.numpy().data.cast("B")
        listed.append([label, at])
        padding = -len(memory) % mmap.PAGESIZE
        yield memory
        yield bytes(padding)
        at += len(memory) + padding
    text = json.dumps(listed).encode()
    yield text
    yield len(text).to_bytes(_LENGTH_BYTES, "little")
    yield _END


def _in_pieces(content: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same in pieces of one size, since the kernel's page cache holds what is written at once,
    from the start of a large page on, in large pages."""
    piece = bytearray()
    for some in content:
        for first in range(0, len(some), _PIECE_BYTES):
            with IN_PLACE:  # a model that dozes has no memory to read
                piece += some[first : first + _PIECE_BYTES]
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece[:_PIECE_BYTES])
                del piece[:_PIECE_BYTES]
    yield bytes(piece)
