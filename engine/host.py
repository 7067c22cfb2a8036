"""Whom an engine deals with while it loads: a worker, in tests a stand-in."""

from typing import Protocol

from engine.types import Phase


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
