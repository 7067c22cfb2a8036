"""The memory arbiter: memory is asked for, not taken.

One arbiter lives in the server process and knows a budget per device; workers ask it through
messages before they allocate. Later it evicts what is evictable; today it grants or refuses.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.errors import InsufficientMemory

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reservation:
    """`owner` holds `num_bytes` on `device` for `purpose`."""

    owner: str
    device: str
    purpose: str
    num_bytes: int
    evictable: bool = False


class MemoryArbiter:
    """Budgets per device, and who holds how much. Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._budgets: dict[str, int] = {}
        self._held: list[Reservation] = []

    def ensure_budget(self, device: str, capacity_bytes: int) -> None:
        """Set the budget unless there is one: the first to look sees the untouched device."""
        self._budgets.setdefault(device, capacity_bytes)

    def free(self, device: str) -> int:
        """Bytes of the budget that nobody holds."""
        held = sum(r.num_bytes for r in self._held if r.device == device)
        return self._budgets.get(device, 0) - held

    def reserve(
        self, owner: str, device: str, purpose: str, num_bytes: int, *, evictable: bool = False
    ) -> Reservation:
        """Grant memory to `owner`.

        Raises:
            InsufficientMemory: the message lists who holds what, and says how much is missing.
        """
        free = self.free(device)
        if num_bytes > free:
            holders = ", ".join(
                f"{r.owner} {r.purpose} {r.num_bytes // MIB} MiB"
                for r in self._held
                if r.device == device
            )
            raise InsufficientMemory(
                f"{owner} asks for {num_bytes // MIB} MiB for {purpose} on {device}, "
                f"{max(0, free) // MIB} MiB are free (held: {holders or 'nothing'}); "
                f"lower kv_cache_memory_gib or max_model_len, or serve fewer models"
            )
        reservation = Reservation(owner, device, purpose, num_bytes, evictable)
        self._held.append(reservation)
        return reservation

    def release(self, owner: str) -> None:
        """Give back everything that `owner` holds."""
        self._held = [r for r in self._held if r.owner != owner]


def available_host_memory() -> int:
    """Bytes this process can still get: the kernel's estimate, capped by the cgroup's limit."""
    available = _meminfo_available()
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit != "max":
            used = int((root / "memory.current").read_text())
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: the kernel's estimate stands
    return available


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InsufficientMemory("the kernel does not say how much memory is available")
