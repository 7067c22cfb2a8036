"""The files an adapter was read from, and the check whether they are unchanged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import ModelLoadError
from engine.weights.digest import digest_of

Mark = tuple[int, int]
"""Size of a file in bytes and its modification time in ns."""


@dataclass(frozen=True, slots=True)
class Source:
    """The files that an adapter was read from. A key stands for the same numbers as long as it
    exists, since caches rely on it, so an adapter is read again from unchanged files or not at
    all."""

    folder: str
    """The folder or file of the adapter."""
    marks: tuple[Mark | None, ...]
    digest: str = field(default="", compare=False)
    """The digest of the files' bytes."""

    @classmethod
    def of(cls, folder: str, *files: Path) -> "Source":
        """Record the files as they are now. None of them need exist."""
        return cls(folder, tuple(map(_mark, files)))

    def with_digest(self, files: Mapping[str, Path]) -> "Source":
        """Add the digest of the files, computed over the names given here."""
        return replace(self, digest=digest_of(files))

    @contextmanager
    def unchanged_by_the_end(self, *files: Path) -> Iterator[None]:
        """Read the files inside this context. However it ends, check that they are unchanged.

        Raises:
            ModelLoadError: the files have changed.
        """
        try:
            yield
        finally:
            self.check_unchanged(Source.of(self.folder, *files), since="reading them began")

    def check_unchanged(self, now: "Source", since: str = "it was loaded") -> None:
        """Check that the files are unchanged.

        Raises:
            ModelLoadError: the files have changed.
        """
        if self != now:
            raise ModelLoadError(f"the adapter's files have changed since {since}; load it again")


def _mark(file: Path) -> Mark | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
