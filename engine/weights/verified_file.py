"""Files known by their SHA-256, which are written completely or not at all, and hashed once.

Beside a file lies `<name>.verified.json` with its hash, size and modification time when it was
hashed. While size and time agree the hash counts as proven, so a start does not read 100 MB again.
An edit that restores both goes unnoticed; deleting the record forces a new hash.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def is_verified(path: Path, sha256: str) -> bool:
    """Whether `path` was found to have this hash before and has not changed since."""
    try:
        record = json.loads(_record_path(path).read_text())
        return bool(record == _record(path, sha256))
    except (OSError, ValueError):
        return False


def has_sha256(path: Path, sha256: str) -> bool:
    """Hash `path` now. Returns False if the hash differs or there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def verify(path: Path, sha256: str) -> bool:
    """Hash `path` like `has_sha256`; if it agrees, write the record that `is_verified` reads."""
    if not has_sha256(path, sha256):
        return False
    write_whole(_record_path(path), [json.dumps(_record(path, sha256)).encode()])
    return True


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` to `path` so that even a crash or power cut leaves all or nothing.

    If there are several writers, the last one wins. A crash may leave `<name>.*.part` behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified.json")


def _record(path: Path, sha256: str) -> dict[str, str | int]:
    stat = path.stat()
    return {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
