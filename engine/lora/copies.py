"""Adapters in the host's memory, from which they are restored faster than from their files."""

from collections import OrderedDict

from engine.contract.host import Grant, Host
from engine.errors import InsufficientMemory
from engine.lora.peft_files import Adapter


class Copies:
    """Adapters in the host's memory by key; the least recently used go first.

    Args:
        capacity_bytes: see `Host.reserve`.
    """

    def __init__(self, host: Host, capacity_bytes: int) -> None:
        self._host = host
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[str, tuple[Adapter, Grant]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter, _ in self._kept.values())

    def get(self, key: str) -> Adapter | None:
        """Return the adapter of a key, or None if there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: str, adapter: Adapter, most_bytes: int | None) -> None:
        """Keep a copy within `most_bytes` for all of them, if there is memory for it.

        Args:
            most_bytes: None: as much as there is.
        """
        if self.get(key) is not None:
            return
        if most_bytes is not None:
            if adapter.num_bytes > most_bytes:
                return
            self.shrink(most_bytes - adapter.num_bytes)
        try:
            grant = self._host.borrow(
                "cpu", "copies of adapters", adapter.num_bytes, self._capacity_bytes
            )
        except InsufficientMemory:  # it can be read from its files
            return
        self._kept[key] = (adapter, grant)

    def shrink(self, most_bytes: int) -> None:
        """Drop copies until the rest takes no more than `most_bytes`."""
        while self._kept and self.num_bytes > most_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        """Drop the copy of a key; unknown keys are ignored."""
        _, grant = self._kept.pop(key, (None, None))
        if grant is not None:
            self._host.give_back(grant)
