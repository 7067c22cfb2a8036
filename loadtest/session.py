"""What all measurements of a plan share: their seed, progress lines and saved results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The measurement of one plan.

    Attributes:
        log_dir: folder for the servers' own output.
        say: prints a line of progress.
        save: saves what has been measured so far.
    """

    seed: int
    log_dir: Path
    say: Callable[[str], None]
    save: Callable[[dict[str, Any]], None]

    @contextmanager
    def measuring(self, document: dict[str, Any]) -> Iterator[None]:
        """Save the document at the end in any case; `partial` stays true if it was cut short."""
        try:
            yield
            document["partial"] = False
        finally:
            self.save(document)
