"""A small disk for one server, which can be filled and made read-only.

It is a tmpfs in a mount namespace of its own, so nothing else on the machine sees it.
"""

import asyncio
import contextlib
import errno
import functools
import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

_SIZE = "192m"
_UNSHARE = ("unshare", "--map-root-user", "--mount")
_PIECE = bytes(1 << 16)


@functools.cache
def can_mount() -> bool:
    """Whether this system lets us make such a disk."""
    try:
        done = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False)
    except OSError:
        return False
    return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk, mounted at `path` for processes that are started with `prefix`."""

    path: Path
    holder: int

    @property
    def prefix(self) -> str:
        """Words before a command that let it see the disk."""
        return shlex.join(self._enter())

    @property
    def outside(self) -> Path:
        """Where this process finds the disk's files."""
        return Path(f"/proc/{self.holder}/root{self.path}")

    def fill(self) -> None:
        """Take all bytes that are left."""
        with (self.outside / "filler").open("wb", buffering=0) as file:
            for piece in (_PIECE, b"0"):
                with _until_full():
                    while True:
                        file.write(piece)

    def free(self) -> None:
        (self.outside / "filler").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        path = shlex.quote(str(self.path))
        self._run(f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")

    def make_writable(self) -> None:
        self._run(f"umount --lazy {shlex.quote(str(self.path))}")

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.holder), "-U", "-m", "--preserve-credentials"]

    def _run(self, command: str) -> None:
        subprocess.run([*self._enter(), "sh", "-c", command], check=True)


@contextlib.contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextlib.asynccontextmanager
async def mounted(path: Path) -> AsyncIterator[Disk]:
    """Mount a disk at a new folder, until the end."""
    os.makedirs(path)
    command = f'mount -t tmpfs -o size={_SIZE} tmpfs "$0" && echo mounted && exec sleep infinity'
    holder = await asyncio.create_subprocess_exec(
        *(*_UNSHARE, "sh", "-c", command, str(path)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    try:
        if await holder.stdout.readline() != b"mounted\n":
            raise RuntimeError("a small disk cannot be mounted here; see can_mount")
        yield Disk(path, holder.pid)
    finally:
        holder.kill()
        await holder.wait()
        os.rmdir(path)
