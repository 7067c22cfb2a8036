"""The host of a model that is loaded or planned without a server."""

from engine.contract.host import Grant, Tell
from engine.contract.knob import GIB
from engine.contract.status import Phase
from engine.errors import InsufficientMemory


class TellingHost:
    """A host that reports the progress of loading and grants memory up to the capacity."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        self._tell({"phase": phase.value, "progress": progress, "detail": detail})

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        if num_bytes > capacity_bytes:
            raise InsufficientMemory(
                f"{purpose} take {num_bytes / GIB:.2f} GiB; {capacity_bytes / GIB:.2f} GiB are "
                f"free; use a smaller model or free memory"
            )
        return capacity_bytes - num_bytes

    def borrow(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> Grant:
        return Grant(0, self.reserve(device, purpose, num_bytes, capacity_bytes))

    def give_back(self, grant: Grant) -> None:
        """Do nothing, as no grants are recorded."""
