"""Admits requests: bounds what is in flight per operation of a model, and refuses while draining.

Routes call this before anything expensive. A refused request gets `QueueFull` (429) or `Draining`
(503) with a time to retry after. The engine's own limits come behind this one.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engine.contract.operations import AnyOperation
from engine.errors import Draining, QueueFull
from server.http.lifecycle import Lifecycle

_MAX_RETRY_AFTER_S = 60
_RATE_WINDOW_S = 60.0
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How many requests or items each model that offers an operation may have in flight for it."""

    what: str
    """Name of the things that take places, such as `sequences`."""
    num_running: int
    num_waiting: int

    @property
    def limit(self) -> int:
        return self.num_running + self.num_waiting

    @property
    def share(self) -> int:
        """The most places of one request whose parts can wait for each other: with twice what
        runs, the next part is at hand when one ends, and half is left to others."""
        return max(1, min(2 * self.num_running, self.limit // 2))


_Queue = tuple[AnyOperation, str]
"""What has places of its own: an operation of a model."""


class Lease:
    """Places held by one request. Given back once, however the request ends.

    Its holder calls `release`. A lease that is dropped without that, as when a client disconnects
    before its response starts, gives its places back when it is garbage-collected.
    """

    def __init__(self, num_places: int, give_back: Callable[[], None] | None) -> None:
        self.num_places = num_places
        self._give_back = give_back

    @classmethod
    def within(cls) -> "Lease":
        """A place that another lease holds and gives back."""
        return cls(1, None)

    def release(self) -> None:
        """Give the places back. Idempotent."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __del__(self) -> None:
        self.release()


class Admission:
    """Counts the places taken at each model by what waits or runs. Event loop only.

    Each operation of a model has places of its own, as it has a queue of its own in the engine.

    Invariant: the places taken for an operation are the sum of `num_places` over its live leases,
    and at most the limit, unless a single request asks for more than that.

    Args:
        places: returns a model's places, given its kind and id.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        places: Callable[[AnyOperation, str], Places],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._lifecycle = lifecycle
        self._clock = clock
        self._in_flight: Counter[_Queue] = Counter()
        self.num_requests = 0
        """Number of requests that hold places, however many."""
        self._departures: deque[tuple[float, _Queue, int]] = deque(maxlen=256)

    def num_in_flight(self, model: str | None = None) -> int:
        """Number of places taken at one model, or at all models."""
        return sum(
            num for (_, name), num in self._in_flight.items() if model is None or name == model
        )

    def share(self, kind: AnyOperation, model: str) -> int:
        """The most places that a request should take if its further parts can wait."""
        return self._places(kind, model).share

    def admit(self, kind: AnyOperation, model: str, num_more: int = 1) -> Lease:
        """Take places for a request to a model of that kind.

        A request for more places than the limit enters once nothing else is in flight.

        Raises:
            Draining: the server is shutting down.
            QueueFull: too much is in flight. Both carry `retry_after_s`.
        """
        places = self._places(kind, model)
        if self._lifecycle.draining:
            draining = Draining("the server is shutting down; send the request to another one")
            draining.retry_after_s = max(1, math.ceil(self._lifecycle.remaining_drain_s()))
            raise draining
        in_flight = self._in_flight[kind, model]
        if in_flight and in_flight + num_more > places.limit:
            full = QueueFull(
                f"{in_flight} {places.what} are running or waiting and {num_more} more were asked "
                f"for; the limit is {places.limit} ({places.num_running} running and "
                f"{places.num_waiting} waiting); try again later"
            )
            num_missing = in_flight + num_more - places.limit
            full.retry_after_s = self._retry_after_s((kind, model), num_missing)
            raise full
        self._enter((kind, model), num_more)
        return Lease(num_more, partial(self._leave, (kind, model), num_more))

    async def admit_later(
        self, kind: AnyOperation, model: str, num_more: int, patience_s: float
    ) -> Lease:
        """Like `admit`, for work that follows other work: wait while too much is in flight.

        Raises:
            Draining: the server is shutting down.
            QueueFull: too much is still in flight after `patience_s`.
        """
        end = self._clock() + patience_s
        while True:
            try:
                return self.admit(kind, model, num_more)
            except QueueFull:
                if self._clock() >= end:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _enter(self, queue: _Queue, num_places: int) -> None:
        self.num_requests += 1
        self._in_flight[queue] += num_places

    def _leave(self, queue: _Queue, num_places: int) -> None:
        self.num_requests -= 1
        self._in_flight[queue] -= num_places
        if not self._in_flight[queue]:
            del self._in_flight[queue]
        self._departures.append((self._clock(), queue, num_places))

    def _retry_after_s(self, queue: _Queue, num_missing: int) -> int:
        """Seconds until `num_missing` places are free, if requests keep ending at the recent
        rate."""
        now = self._clock()
        recent = [
            (at, num)
            for at, left, num in self._departures
            if left == queue and now - at <= _RATE_WINDOW_S
        ]
        num_ended = sum(num for _, num in recent)
        if num_ended == 0:
            return 1
        seconds_per_place = (now - recent[0][0]) / num_ended
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(num_missing * seconds_per_place)))
