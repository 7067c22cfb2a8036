"""A host of engines that grants memory."""

from collections.abc import Callable
from typing import Any

from engine.contract.host import Grant
from engine.errors import InsufficientMemory


class Host:
    """Grants the memory that it has for a purpose, by default all of it.

    Attributes:
        reserved: what was reserved: device, purpose and bytes.
        reports: what was reported: the phase and what followed it.
    """

    def __init__(self, has_memory_for: Callable[[str], bool] = lambda purpose: True) -> None:
        self._has_memory_for = has_memory_for
        self.reserved: list[tuple[str, str, int]] = []
        self.reports: list[tuple[Any, ...]] = []

    def report(self, *report: Any, **more: Any) -> None:
        self.reports.append(report)

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        if not self._has_memory_for(purpose):
            raise InsufficientMemory(f"no memory for {purpose}")
        self.reserved.append((device, purpose, num_bytes))
        return capacity_bytes - num_bytes

    def borrow(
        self,
        device: str,
        purpose: str,
        num_bytes: int,
        capacity_bytes: int,
        shared_bytes: int = 0,
    ) -> Grant:
        return Grant(0, capacity_bytes)

    def give_back(self, grant: Grant) -> None:
        pass
