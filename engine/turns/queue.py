"""Queues of waiting requests in the order of their rank."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeVar


class Ranked(Protocol):
    """An item that can wait in a queue."""

    @property
    def rank(self) -> tuple[int, ...]:
        """The rank; the smallest goes first. Unique in its queue."""
        ...


RankedT = TypeVar("RankedT", bound=Ranked)


class WaitingQueue(Protocol[RankedT]):
    """`peek`, `pop` and iteration start at the smallest rank; an empty queue raises IndexError."""

    def push(self, item: RankedT) -> None: ...
    def peek(self) -> RankedT: ...
    def pop(self) -> RankedT: ...
    def remove(self, item: RankedT) -> None:
        """Remove an item that is in the queue."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[RankedT]: ...


class ArrivalQueue(WaitingQueue[RankedT]):
    """A queue for ranks that rise with arrival: newcomers go to the end, preempted ones near the
    front."""

    def __init__(self) -> None:
        self._items: deque[RankedT] = deque()

    def push(self, item: RankedT) -> None:
        if not self._items or self._items[-1].rank < item.rank:
            self._items.append(item)
            return
        later = (i for i, other in enumerate(self._items) if other.rank > item.rank)
        self._items.insert(next(later), item)

    def peek(self) -> RankedT:
        return self._items[0]

    def pop(self) -> RankedT:
        return self._items.popleft()

    def remove(self, item: RankedT) -> None:
        self._items.remove(item)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[RankedT]:
        return iter(self._items)


class RankQueue(WaitingQueue[RankedT]):
    """A queue for any ranks, kept as a sorted list, since moving a thousand pointers is cheaper
    than a heap that must remember removals."""

    def __init__(self) -> None:
        self._items: list[RankedT] = []

    def push(self, item: RankedT) -> None:
        insort(self._items, item, key=_rank)

    def peek(self) -> RankedT:
        return self._items[0]

    def pop(self) -> RankedT:
        return self._items.pop(0)

    def remove(self, item: RankedT) -> None:
        del self._items[bisect_left(self._items, item.rank, key=_rank)]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[RankedT]:
        return iter(self._items)


def _rank(item: Ranked) -> tuple[int, ...]:
    return item.rank
