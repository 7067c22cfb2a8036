"""Files that belong to owners of API keys: in a folder for each, bounded together, for the server's
user only."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from engine.errors import InvalidParameter
from server.http.owner import Owner

MAX_FILES = 10_000
MAX_BYTES = 1 << 30
"""Most files of an owner, and their bytes together. Empty files do not count."""
_EVERYBODY = "everybody"


class OwnerFiles:
    """The conversations in a folder, each a file. Blocking: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, owner: Owner | None) -> Path:
        """Where the owner's file of that name is, or would be."""
        return self._folder / (_EVERYBODY if owner is None else owner.hex()) / name

    def all(self, owner: Owner | None, ending: str = "") -> "Iterator[os.DirEntry[str]]":
        """The owner's files whose names have that ending."""
        with suppress(FileNotFoundError), os.scandir(self.path("", owner)) as files:
            yield from (file for file in files if file.name.endswith(ending))

    def write(self, name: str, data: bytes, owner: Owner | None) -> None:
        """Write a file, whole or not at all, in place of an earlier one.

        Raises:
            InvalidParameter: the owner keeps too much.
        """
        path = self.path(name, owner)
        self._check_room(path, len(data), owner)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def _check_room(self, path: Path, num_bytes: int, owner: Owner | None) -> None:
        others = [file.stat().st_size for file in self.all(owner) if file.name != path.name]
        if sum(map(bool, others)) >= MAX_FILES or sum(others) + num_bytes > MAX_BYTES:
            raise InvalidParameter(
                f"more than {MAX_FILES} conversations or {MAX_BYTES >> 20} MiB of them are not "
                "kept here; delete some"
            )
