"""The memory arbiter, which grants memory before it is used.

One arbiter lives in the server process and knows a budget per device; workers ask it through
messages before they allocate, when they load and when they serve. It grants or refuses.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import InsufficientMemory

MIB = 1 << 20
PROCESS = "process"
"""The purpose of what a worker takes beside its model."""
_PROCESS_ID = -1
"""The number of a sleeping process's reservation; those of owners begin at 0."""
_ASIDE_ID = -2


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation of `num_bytes` by `owner` on `device` for `purpose`; `id` is the owner's own
    number for it."""

    owner: str
    id: int
    device: str
    purpose: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of a device: its budget, and what each owner holds."""

    device: str
    budget_bytes: int
    held_bytes: dict[str, int]


class MemoryArbiter:
    """Budgets per device, and the memory that each owner holds. Not thread-safe: one event loop
    owns it.

    Args:
        most_bytes: the largest budget of a device; None is all of its memory.

    Invariant: the memory held on a device, and what its owners share, is at most its budget.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._budgets: dict[str, int] = {}
        self._held: dict[tuple[str, int], Reservation] = {}
        self._aside: dict[tuple[str, str], Reservation] = {}
        """What is kept for what an owner will ask for, by owner and device."""
        self._shared: dict[str, int] = {}
        self._suspended: dict[str, list[Reservation]] = {}
        """What the owners that sleep held before."""

    def ensure_budget(self, device: str, capacity_bytes: int, shared_bytes: int = 0) -> None:
        """Set the budget to the free memory that was seen, unless memory of the device is held
        already: only before that is all of its memory seen.

        Args:
            shared_bytes: the memory of files that an owner shares with all others. It is taken from
                the budget once, as much as the largest owner has.
        """
        if self.held(device) == 0:
            most = capacity_bytes if self._most_bytes is None else self._most_bytes
            self._budgets[device] = min(capacity_bytes, most)
        self._shared[device] = max(shared_bytes, self._shared.get(device, 0))

    def held(self, device: str, owner: str | None = None, purpose: str | None = None) -> int:
        """Return the bytes that are held on a device, by one owner or by all, for one purpose or
        for all."""
        return sum(
            r.num_bytes
            for r in self._on(device)
            if owner in (None, r.owner) and purpose in (None, r.purpose)
        )

    def free(self, device: str, owner: str | None = None) -> int:
        """Return the bytes that an owner can get: those that nobody holds, and what is set aside
        for it."""
        aside = self._aside.get((owner, device)) if owner is not None else None
        return self.lendable(device) - self.held(device) + (0 if aside is None else aside.num_bytes)

    def lendable(self, device: str) -> int:
        """Return the bytes that all owners together may hold on a device."""
        return self._budgets.get(device, 0) - self._shared.get(device, 0)

    def held_by(self, owner: str) -> dict[str, int]:
        """Return the bytes that an owner holds on each device where it holds any."""
        held = {device: self.held(device, owner) for device in self._budgets}
        return {device: num_bytes for device, num_bytes in held.items() if num_bytes}

    def devices(self) -> list[DeviceMemory]:
        """All devices that memory was asked for on."""
        return [
            DeviceMemory(
                device, budget, {r.owner: self.held(device, r.owner) for r in self._on(device)}
            )
            for device, budget in self._budgets.items()
        ]

    def reserve(self, owner: str, id: int, device: str, purpose: str, num_bytes: int) -> None:
        """Grant memory to `owner`, who gives it back by the same id. The ids that an owner uses at
        a time must differ.

        Raises:
            InsufficientMemory: the message lists all holders and says how much is missing.
        """
        free = self.free(device, owner)
        if num_bytes > free:
            holders = ", ".join(
                f"{r.owner} {r.purpose} {r.num_bytes // MIB} MiB" for r in self._on(device)
            )
            raise InsufficientMemory(
                f"{owner} needs {num_bytes // MIB} MiB for {purpose} on {device}; "
                f"{max(0, free) // MIB} MiB are free (in use: {holders or 'nothing'}); "
                f"lower kv_cache_memory_gib or max_model_len, or serve fewer models"
            )
        self._held[owner, id] = Reservation(owner, id, device, purpose, num_bytes)
        if (aside := self._aside.pop((owner, device), None)) is not None:
            self._keep_aside(replace(aside, num_bytes=aside.num_bytes - num_bytes))

    def set_aside(self, owner: str, device: str, num_bytes: int) -> None:
        """Keep free memory for what an owner will ask for, until `end_aside`, so that nobody else
        gets it meanwhile."""
        self._keep_aside(Reservation(owner, _ASIDE_ID, device, "start", num_bytes))

    def end_aside(self, owner: str) -> None:
        """Keep nothing more for an owner than it holds."""
        self._aside = {key: r for key, r in self._aside.items() if r.owner != owner}

    def _keep_aside(self, aside: Reservation) -> None:
        if aside.num_bytes > 0:
            self._aside[aside.owner, aside.device] = aside

    def release(self, owner: str, id: int) -> None:
        """Give one reservation back; one that is not held is ignored."""
        self._held.pop((owner, id), None)

    def release_all(self, owner: str) -> None:
        """Give back everything that `owner` holds."""
        self._held = {key: r for key, r in self._held.items() if r.owner != owner}
        self.end_aside(owner)
        self._suspended.pop(owner, None)

    def suspend(self, owner: str, device: str, process_bytes: int) -> bool:
        """Let a process that sleeps hold only what it still uses, until `resume`. False: that is
        more than is free then, and it holds nothing."""
        before = [r for r in self._held.values() if r.owner == owner]
        self.release_all(owner)
        if process_bytes > self.free(device):
            return False
        self.reserve(owner, _PROCESS_ID, device, PROCESS, process_bytes)
        self._suspended[owner] = before
        return True

    def resume(self, owner: str) -> bool:
        """Let an owner hold again what it held before `suspend`. False: there is too little, and
        nothing has changed."""
        process = self._held.pop((owner, _PROCESS_ID))
        before = self._suspended[owner]
        for device in {r.device for r in before}:
            if sum(r.num_bytes for r in before if r.device == device) > self.free(device):
                self._held[owner, _PROCESS_ID] = process
                return False
        self._held |= {(owner, r.id): r for r in before}
        del self._suspended[owner]
        return True

    def _on(self, device: str) -> list[Reservation]:
        return [r for r in (*self._held.values(), *self._aside.values()) if r.device == device]


def available_host_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process can still get: the kernel's estimate, capped by the
    control group's limit.

    Cached files count as free in both, since the kernel drops them first.
    """
    available = _meminfo_available()
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text()) - _cached_files(cgroup)
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: the kernel's estimate stands
    return available


def private_bytes() -> int:
    """Return the bytes that this process and those that it started share with no other one."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children"))
    return sum(_private_bytes(pid) for pid in ("self", *children.split()))


def _private_bytes(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    rows = map(str.split, lines)
    return sum(int(row[1]) << 10 for row in rows if row[0].startswith("Private_"))


def _cached_files(cgroup: Path) -> int:
    """Return the bytes of files that have not been used lately."""
    for line in (cgroup / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InsufficientMemory("the kernel does not say how much memory is available")
