"""The interface of a loading engine to its worker, or to a stand-in in tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.contract.status import Phase

Tell = Callable[[Mapping[str, Any]], None]
"""A function that takes progress to show: `phase`, `progress` and `detail` while a model is loaded,
then `passage`, `of` and the `perplexity` so far."""


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
