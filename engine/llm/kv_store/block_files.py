"""Files with one KV block each, in a folder that several servers may share.

    FOLDER/9/9f3c…    what it is (8 bytes), SHA-256 (32 bytes), contents

A file is named by its block's key. The hash covers the key, so a file that was damaged, cut off or
renamed is refused. It appears under its name only once it is whole, and is never changed. There is
no index that could be wrong, and nothing is read at the start. The time of a file's change is that
of its last use.
"""

import contextlib
import errno
import hashlib
import os
import random
import secrets
import stat
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from engine.errors import ModelLoadError

_HEADER = struct.Struct("<8s32s")
_FORMAT = b"TandemK1"
_SHARDS = "0123456789abcdef"
_KEPT = 7 / 8
"""The share of its limit that a shard keeps when its oldest files are removed. Files are counted
again after the rest of it was written."""
_ABANDONED_S = 600.0
"""The age of unfinished files whose writer must be gone."""


class BlockFiles:
    """The files of a folder, by key. Every call may wait for the disk; one thread reads and one
    writes.

    Args:
        max_bytes: the most bytes of the files, of all writers together. Each of two servers may
            exceed it by an eighth.

    Raises:
        ModelLoadError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.num_refused = 0
        """The number of files that were not what their names say."""
        self._folder = folder
        self._most_bytes = max_bytes // len(_SHARDS)
        # A start somewhere in the period keeps servers within the limit that never run for long.
        period = int(self._most_bytes * (1 - _KEPT))
        self._until_trim = {shard: random.randint(0, period) for shard in _SHARDS}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for shard in _SHARDS:
                (folder / shard).mkdir(mode=0o700, exist_ok=True)
                if not os.access(folder / shard, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError("this user may not write there")
        except OSError as error:
            raise ModelLoadError(
                f"kv_store: {folder.name!r} cannot be used as a folder: {_reason(error)}; name a "
                f"folder that this user can write to, or leave kv_store out",
                param="kv_store",
            ) from error

    def has(self, key: bytes) -> bool:
        """Whether there is a file for the key; it may still be refused."""
        return os.path.exists(self._path(key))

    def touch(self, keys: Iterable[bytes], seconds: float = 0.0) -> None:
        """Note that blocks are used now, or will be in some seconds, if there are files for
        them."""
        for key in keys:
            with contextlib.suppress(OSError):
                path = self._path(key)
                used_s = time.time() + seconds
                if os.stat(path).st_mtime < used_s:
                    os.utime(path, (used_s, used_s))

    def read(self, key: bytes, num_bytes: int) -> memoryview | None:
        """Read a block of this many bytes. None if there is none; an invalid file is removed."""
        path = self._path(key)
        data = bytearray(_HEADER.size + num_bytes)
        try:
            with open(path, "rb", buffering=0, opener=_open_for_reading) as file:
                facts = os.fstat(file.fileno())
                is_whole = stat.S_ISREG(facts.st_mode) and facts.st_size == len(data)
                is_whole = is_whole and file.readinto(data) == len(data)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:  # another user's file, or a sick disk
                self.num_refused += 1
                return None
            is_whole = False
        contents = memoryview(data)[_HEADER.size :]
        if is_whole and data[: _HEADER.size] == _header(key, contents):
            self.touch([key])
            return contents
        self.num_refused += 1
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    def write(self, key: bytes, contents: memoryview) -> int:
        """Write a block unless it is there. Returns the bytes written.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        path = self._path(key)
        if os.path.exists(path):
            self.touch([key])
            return 0
        part = f"{path}.{secrets.token_hex(4)}.part"
        # Somebody may empty the folder at any time.
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            with open(part, "xb", buffering=0, opener=_open_for_writing) as file:
                for piece in (memoryview(_header(key, contents)), contents):
                    while piece:
                        piece = piece[file.write(piece) :]
            os.rename(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
                if error.errno == errno.ENOSPC:  # the disk is smaller than the limit
                    self._trim(os.path.dirname(path), is_full=True)
            raise
        num_bytes = _HEADER.size + len(contents)
        self._count(os.path.dirname(path), num_bytes)
        return num_bytes

    def _path(self, key: bytes) -> str:
        name = key.hex()
        return f"{self._folder}/{name[0]}/{name}"

    def _count(self, shard: str, num_bytes: int) -> None:
        name = os.path.basename(shard)
        self._until_trim[name] -= num_bytes
        if self._until_trim[name] < 0:
            self._trim(shard)
            self._until_trim[name] = int(self._most_bytes * (1 - _KEPT))

    def _trim(self, shard: str, *, is_full: bool = False) -> None:
        """Remove a shard's files beyond the limit, or an eighth of them if the disk is full: those
        that were not used for longest."""
        found = []
        now_s = time.time()
        with os.scandir(shard) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another server may remove it meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    is_part = entry.name.endswith(".part")
                    age_s = now_s - facts.st_mtime
                    if is_part and age_s > _ABANDONED_S:
                        os.unlink(entry.path)
                    elif not is_part:
                        found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        found.sort(reverse=True)
        held_bytes = sum(size for _, size, _ in found)
        left = int(_KEPT * (min(held_bytes, self._most_bytes) if is_full else self._most_bytes))
        for _, size, path in found:
            left -= size
            if left < 0:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _header(key: bytes, contents: memoryview) -> bytes:
    digest = hashlib.sha256(_FORMAT + key)
    digest.update(contents)
    return _HEADER.pack(_FORMAT, digest.digest())


def _open_for_reading(path: str, flags: int) -> int:
    # A pipe in a file's place must not stop the thread.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _open_for_writing(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
