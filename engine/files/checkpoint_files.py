"""Opens the files of a checkpoint, which are not trusted.

A pipe in place of a weight file would block its reader forever, a device could deliver bytes
without end, and deeply nested JSON could crash its reader. Code that reads a checkpoint opens its
files here, and checks here the files that a library will open by itself.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import CorruptFile, ModelLoadError

MAX_JSON_BYTES = 64 << 20
"""The most bytes of a JSON file. The largest in use, lists of weights and vocabularies, have some
10 MB."""
MAX_JSON_DEPTH = 64
"""The most levels of nested objects and arrays. Configurations in use have fewer than ten."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path, max_bytes: int | None = None) -> None:
    """Check a file that a library will open by its name.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it is a folder, a pipe, a socket or a device, or larger than `max_bytes`.
        ModelLoadError: it cannot be looked at.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    _check_mode(path, status.st_mode)
    if max_bytes is not None and status.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never waits if something else is in its place.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it is a folder, a pipe, a socket or a device.
        ModelLoadError: it cannot be opened.
    """
    check_regular(path)  # before opening, which can already have an effect on a device
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    file = open(descriptor, "rb")  # noqa: SIM115  (handed to the caller)
    try:
        # Checked again, as the file may have been replaced. O_NONBLOCK keeps a pipe from blocking.
        _check_mode(path, os.fstat(descriptor).st_mode)
    except ModelLoadError:
        file.close()
        raise
    return file


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All bytes of a small file.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it is not a regular file, or larger than `max_bytes`.
        ModelLoadError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CorruptFile: it is not a regular file, too large, not JSON, nested too deeply, or not an
            object.
        ModelLoadError: there is no such file, or it cannot be read.
    """
    try:
        return parse_json(read_bounded(path, MAX_JSON_BYTES), path.name)
    except FileNotFoundError as error:
        raise unreadable(path, error) from error


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as `read_json` reads it; empty if there is no such file."""
    try:
        return parse_json(read_bounded(path, MAX_JSON_BYTES), path.name)
    except FileNotFoundError:
        return {}


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object from the bytes of the file `name`.

    Raises:
        CorruptFile: the bytes are not JSON, nested too deeply, or not an object.
    """
    value = _parse(data, name)
    if not isinstance(value, dict):
        raise CorruptFile(f"{name} is not a JSON object; fetch it again")
    return value


def parse_json_list(data: bytes, name: str) -> list[Any]:
    """Parse a JSON array from the bytes of the file `name`.

    Raises:
        CorruptFile: the bytes are not JSON, nested too deeply, or not an array.
    """
    value = _parse(data, name)
    if not isinstance(value, list):
        raise CorruptFile(f"{name} is not a JSON array; fetch it again")
    return value


def check_folder(folder: Path) -> None:
    """Check a folder before a library reads any of its files: it must hold only regular files,
    folders and valid JSON.

    Raises:
        CorruptFile: a file is not valid; the message names it.
        ModelLoadError: the folder cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a broken link counts as no file
            if not path.is_dir():
                check_regular(path)
            if path.suffix == ".json":
                _parse(read_bounded(path, MAX_JSON_BYTES), path.name)


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """The error for a file that the system does not let us read."""
    return ModelLoadError(f"{path.name} cannot be read: {error.strerror or type(error).__name__}")


def _parse(data: bytes, name: str) -> Any:
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise _too_deep(name) from error
    except ValueError as error:
        raise CorruptFile(f"{name} is not valid JSON; fetch it again") from error
    if _is_deep(value):
        raise _too_deep(name)
    return value


def _too_deep(name: str) -> CorruptFile:
    return CorruptFile(
        f"{name} is nested more than {MAX_JSON_DEPTH} levels deep, which no model needs; "
        f"fetch it again"
    )


def _is_deep(value: Any) -> bool:
    """Whether JSON is nested too deeply. Goes level by level, as recursion would reach its own
    limit."""
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_large(path: Path, max_bytes: int) -> CorruptFile:
    return CorruptFile(
        f"{path.name} is larger than {max_bytes >> 20} MiB, which no model needs; fetch it again"
    )


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
    raise CorruptFile(f"{path.name} is {kind} and must be a regular file; fetch it again")
