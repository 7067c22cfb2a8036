"""Whom an engine deals with while it loads: a worker, in tests a stand-in."""

from dataclasses import dataclass
from typing import Protocol

from engine.types import Phase


@dataclass(frozen=True, slots=True)
class Grant:
    """Memory that the arbiter has granted."""

    id: int
    free_bytes: int
    """Left on the device after it."""


class Host(Protocol):
    """Whom a loading engine reports to and asks for memory."""

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        """Tell the operator how loading goes."""
        ...

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Ask for memory; returns the bytes still free after it. Raises InsufficientMemory."""
        ...

    def borrow(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> Grant:
        """Ask for memory that may be given back, also while serving. Raises as `reserve` does."""
        ...

    def give_back(self, grant: Grant) -> None:
        """Return what was borrowed."""
        ...
