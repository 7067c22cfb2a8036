"""Keeps what was found: one folder for each finding, with the seed and the bytes that show it."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path


class Findings:
    """The findings of a run. The first of each kind is kept with its files, others are counted."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self.kinds: Counter[str] = Counter()

    def add(self, kind: str, seed: str, what: str, files: Mapping[str, bytes]) -> None:
        """Note a finding.

        Args:
            kind: what findings of one cause have in common.
            seed: the trial that repeats it.
        """
        self.kinds[kind] += 1
        if self.kinds[kind] > 1:
            return
        place = self._folder / f"{len(self.kinds):02}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "finding.txt").write_text(f"seed {seed}\n{what}\n", errors="backslashreplace")
        for name, data in files.items():
            (place / name).write_bytes(data)
        self._say(f"found {kind} (seed {seed}): see {place}")
