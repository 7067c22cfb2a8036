"""Sequences that wait for a place in the batch, in the order of their rank."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from engine.llm.request import Sequence


class WaitingQueue(Protocol):
    """`peek`, `pop` and iteration start at the smallest rank; an empty queue raises IndexError."""

    def push(self, sequence: Sequence) -> None: ...
    def peek(self) -> Sequence: ...
    def pop(self) -> Sequence: ...
    def remove(self, sequence: Sequence) -> None:
        """Of a sequence that is in the queue."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence]: ...


class ArrivalQueue:
    """For ranks that rise with arrival: newcomers go to the end, preempted ones near the front."""

    def __init__(self) -> None:
        self._sequences: deque[Sequence] = deque()

    def push(self, sequence: Sequence) -> None:
        if not self._sequences or self._sequences[-1].rank < sequence.rank:
            self._sequences.append(sequence)
            return
        later = (i for i, other in enumerate(self._sequences) if other.rank > sequence.rank)
        self._sequences.insert(next(later), sequence)

    def peek(self) -> Sequence:
        return self._sequences[0]

    def pop(self) -> Sequence:
        return self._sequences.popleft()

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)


class RankQueue:
    """For any ranks: a sorted list, since moving a thousand pointers is cheaper than a heap that
    must remember what was removed."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_rank)

    def peek(self) -> Sequence:
        return self._sequences[0]

    def pop(self) -> Sequence:
        return self._sequences.pop(0)

    def remove(self, sequence: Sequence) -> None:
        del self._sequences[bisect_left(self._sequences, sequence.rank, key=_rank)]

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)


def _rank(sequence: Sequence) -> tuple[int, ...]:
    return sequence.rank
