"""Where an adapter was read from, and what tells whether the same is there still."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import ModelLoadError
from engine.weights.digest import digest_of

Mark = tuple[int, int]
"""Bytes of a file, and when it was written, in ns."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is asked for by a key has the same numbers for as long as there is that key: caches go
    by it. So an adapter is read again from the files that it was read from, or not at all."""

    folder: str
    """Or a file."""
    marks: tuple[Mark | None, ...]
    digest: str = field(default="", compare=False)
    """Of the files' bytes."""

    @classmethod
    def of(cls, folder: str, *files: Path) -> "Source":
        """As the files are now. None of them need be there."""
        return cls(folder, tuple(map(_mark, files)))

    def with_digest(self, files: Mapping[str, Path]) -> "Source":
        """The same, with the digest of its files, by the names that count."""
        return replace(self, digest=digest_of(files))

    def check_unchanged(self, now: "Source", since: str = "it was loaded") -> None:
        """
        Raises:
            ModelLoadError: the files are others now.
        """
        if self != now:
            raise ModelLoadError(f"its files have changed since {since}; load it anew")


def _mark(file: Path) -> Mark | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
