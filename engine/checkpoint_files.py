"""The files of a checkpoint, opened as what they are: written by strangers.

A pipe in place of a weight file would hold the opener for ever, a device give bytes without end,
and JSON that is nested deeply enough break whoever walks it. What reads a checkpoint opens its
files here, and has those that a library opens by itself checked here first.
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
"""The largest in use are lists of a model's weights, and vocabularies: some ten MB."""
MAX_JSON_DEPTH = 64
"""Objects and arrays within each other. Configurations in use stay below ten."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path, max_bytes: int | None = None) -> None:
    """For files that a library will open by their names.

    Raises:
        FileNotFoundError: there is nothing.
        CorruptFile: it is a folder, a pipe, a socket or a device, or larger than that.
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
    """Open for reading, without waiting for whatever may be there instead of a file.

    Raises:
        FileNotFoundError: there is nothing.
        CorruptFile: it is a folder, a pipe, a socket or a device.
        ModelLoadError: it cannot be opened.
    """
    check_regular(path)  # before: opening a device can already do something
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    file = open(descriptor, "rb")  # noqa: SIM115  (handed to the caller)
    try:
        # After: it may have been replaced since. A pipe opens at once with O_NONBLOCK.
        _check_mode(path, os.fstat(descriptor).st_mode)
    except ModelLoadError:
        file.close()
        raise
    return file


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All of a small file.

    Raises:
        FileNotFoundError: there is nothing.
        CorruptFile: no regular file, or larger than that.
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
        CorruptFile: not a regular file, too large, no JSON, nested too deeply, or no object.
        ModelLoadError: there is no such file, or it cannot be read.
    """
    try:
        return parse_json(read_bounded(path, MAX_JSON_BYTES), path.name)
    except FileNotFoundError as error:
        raise unreadable(path, error) from error


def read_optional_json(path: Path) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    try:
        return parse_json(read_bounded(path, MAX_JSON_BYTES), path.name)
    except FileNotFoundError:
        return {}


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object out of the file `name`.

    Raises:
        CorruptFile: no JSON, nested too deeply, or no object.
    """
    value = _parse(data, name)
    if not isinstance(value, dict):
        raise CorruptFile(f"{name} is not a JSON object; fetch it again")
    return value


def parse_json_list(data: bytes, name: str) -> list[Any]:
    """A JSON array out of the file `name`.

    Raises:
        CorruptFile: no JSON, nested too deeply, or no array.
    """
    value = _parse(data, name)
    if not isinstance(value, list):
        raise CorruptFile(f"{name} is not a JSON array; fetch it again")
    return value


def check_folder(folder: Path) -> None:
    """Before a library reads whatever it likes in a folder: regular files and folders only, and
    JSON that can be read.

    Raises:
        CorruptFile: names the file.
        ModelLoadError: the folder cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a link to nothing is as good as nothing
            if not path.is_dir():
                check_regular(path)
            if path.suffix == ".json":
                _parse(read_bounded(path, MAX_JSON_BYTES), path.name)


def unreadable(path: Path, error: OSError) -> ModelLoadError:
    """What to say of a file that the system does not give."""
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
    """Level by level, as a recursion would meet the very limit that this is about."""
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
    raise CorruptFile(f"{path.name} is {kind} where a regular file belongs; fetch it again")
