"""The interface of a loading engine to its worker, or to a stand-in in tests."""

from dataclasses import dataclass
from typing import Protocol

from engine.types import Phase


@dataclass(frozen=True, slots=True)
class Grant:
    """Memory that the arbiter has granted."""

    id: int
    free_bytes: int
    """The free bytes of the device after this grant."""


class Host(Protocol):
    """What a loading engine reports to and asks for memory."""

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        """Report the progress of loading to the operator."""
        ...

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Ask for memory; returns the bytes still free after it. Raises InsufficientMemory."""
        ...

    def borrow(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> Grant:
        """Ask for memory that may be given back, also while serving. Raises as `reserve` does."""
        ...

    def give_back(self, grant: Grant) -> None:
        """Return borrowed memory."""
        ...
