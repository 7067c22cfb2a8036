"""Admits requests: bounds what is in flight per model, and refuses while draining.

Routes call this before anything expensive. A refused request gets `QueueFull` (429) or `Draining`
(503) with a time to retry after. The engine's own limits come behind this one.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.contract.operations import AnyOperation
from engine.errors import Draining, QueueFull
from server.http.lifecycle import Lifecycle

_MAX_RETRY_AFTER_S = 60
_RATE_WINDOW_S = 60.0
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How many requests or items each model of a kind may have in flight."""

    what: str
    """Name of the things that take places, such as `sequences`."""
    num_running: int
    num_waiting: int

    @property
    def limit(self) -> int:
        return self.num_running + self.num_waiting


class Lease:
    """Places held by one request. Given back once, however the request ends.

    Whoever holds it calls `release`. A lease that is dropped without it, as when a client leaves
    before its response starts, gives its places back when it is collected.
    """

    def __init__(self, admission: "Admission | None", model: str, num_places: int) -> None:
        self.num_places = num_places
        self._admission = admission
        self._model = model
        if admission is not None:
            admission._enter(model, num_places)

    @classmethod
    def within(cls, model: str) -> "Lease":
        """A place that another lease holds and gives back."""
        return cls(None, model, 1)

    def release(self) -> None:
        """Give the places back. Idempotent."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._leave(self._model, self.num_places)

    def __del__(self) -> None:
        self.release()


class Admission:
    """Counts the places taken at each model by what waits or runs. Event loop only.

    Invariant: `num_in_flight(model)` is the sum of `num_places` over the model's live leases, and
    at most the model's limit, unless a single request asks for more than that.

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
        self._in_flight: dict[str, int] = {}
        self.num_requests = 0
        """Number of requests that hold places, however many."""
        self._departures: deque[tuple[float, str, int]] = deque(maxlen=256)

    def num_in_flight(self, model: str | None = None) -> int:
        """Number of places taken at one model, or at all models."""
        return sum(self._in_flight.values()) if model is None else self._in_flight.get(model, 0)

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
        in_flight = self.num_in_flight(model)
        if in_flight and in_flight + num_more > places.limit:
            full = QueueFull(
                f"{in_flight} {places.what} are running or waiting and {num_more} more were asked "
                f"for; the limit is {places.limit} ({places.num_running} running and "
                f"{places.num_waiting} waiting); try again later"
            )
            full.retry_after_s = self._retry_after_s(model, in_flight + num_more - places.limit)
            raise full
        return Lease(self, model, num_more)

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

    def _enter(self, model: str, num_places: int) -> None:
        self.num_requests += 1
        self._in_flight[model] = self.num_in_flight(model) + num_places

    def _leave(self, model: str, num_places: int) -> None:
        self.num_requests -= 1
        left = self._in_flight[model] - num_places
        if left:
            self._in_flight[model] = left
        else:
            del self._in_flight[model]
        self._departures.append((self._clock(), model, num_places))

    def _retry_after_s(self, model: str, num_missing: int) -> int:
        """Seconds until `num_missing` places are free, if requests go on ending at the recent
        rate."""
        now = self._clock()
        recent = [
            (at, num)
            for at, name, num in self._departures
            if name == model and now - at <= _RATE_WINDOW_S
        ]
        num_ended = sum(num for _, num in recent)
        if num_ended == 0:
            return 1
        seconds_per_place = (now - recent[0][0]) / num_ended
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(num_missing * seconds_per_place)))
