"""What is common to everything that measures by a plan: where its random choices, lines of progress
and results come from and go to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One measurement of a plan.

    Attributes:
        log_dir: where the servers' own output goes.
        say: shows a line of progress.
        save: keeps what has been measured so far.
    """

    seed: int
    log_dir: Path
    say: Callable[[str], None]
    save: Callable[[dict[str, Any]], None]

    @contextmanager
    def measuring(self, document: dict[str, Any]) -> Iterator[None]:
        """Save the document at the end, whatever happens; `partial` stays true if it is cut
        short."""
        try:
            yield
            document["partial"] = False
        finally:
            self.save(document)
