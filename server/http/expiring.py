"""A table of values that are kept for a while: bounded in number, bytes and time."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ExpiringTable(Generic[T]):
    """Values by name, each of which expires. Event loop only.

    Invariant: at most `max_items` values of at most `max_bytes` together. The oldest make room for
    new ones; a renewed value counts as new.

    Args:
        max_items: None sets no bound.
        max_bytes: None sets no bound.
        ttl_s: seconds that a value lives after its last `put` or `renew`.
    """

    def __init__(
        self,
        *,
        ttl_s: float,
        max_items: int | None = None,
        max_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_bytes = 0
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[T, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, name: str, value: T, num_bytes: int = 0) -> bool:
        """Keep a value, replacing one of the same name. Returns whether there was room for it; if
        not, nothing changes."""
        if self._max_bytes is not None and num_bytes > self._max_bytes:
            return False
        self.pop(name)
        self._drop_expired()
        while self._entries and self._is_full(num_bytes):
            self.pop(next(iter(self._entries)))
        self._entries[name] = (value, num_bytes, self._clock() + self._ttl_s)
        self.num_bytes += num_bytes
        return True

    def get(self, name: str) -> T | None:
        """The value of that name; None if there is none, or it has expired."""
        self._drop_expired()
        entry = self._entries.get(name)
        return None if entry is None else entry[0]

    def pop(self, name: str) -> T | None:
        """Forget a value, and return it."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return None
        self.num_bytes -= entry[1]
        return entry[0]

    def renew(self, name: str) -> None:
        """Keep a value as long as if it had just been put."""
        value, num_bytes, _ = self._entries.pop(name)
        self._entries[name] = (value, num_bytes, self._clock() + self._ttl_s)

    def seconds_left(self, name: str) -> int:
        """Whole seconds until a value expires; 0 if there is none."""
        entry = self._entries.get(name)
        return 0 if entry is None else max(0, int(entry[2] - self._clock()))

    def _is_full(self, num_more_bytes: int) -> bool:
        too_many = self._max_items is not None and len(self._entries) >= self._max_items
        return too_many or (
            self._max_bytes is not None and self.num_bytes + num_more_bytes > self._max_bytes
        )

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._entries:
            name, (_, _, expires_s) = next(iter(self._entries.items()))
            if expires_s > now:
                return
            self.pop(name)
