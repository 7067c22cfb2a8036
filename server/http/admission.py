"""Who may enter: bounds the sequences or images in flight per model, refuses while draining.

Called by routes before anything expensive. A refused request gets `QueueFull` (429) or `Draining`
(503) with a time to come back. The engine's own limits stay behind this one.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from engine.errors import Draining, QueueFull
from server.http.lifecycle import Lifecycle

_MAX_RETRY_AFTER_S = 60
_RATE_WINDOW_S = 60.0


class Lease:
    """Places held by one request. Given back once, however the request ends.

    Whoever holds it calls `release`. A lease that is dropped without it, as when a client leaves
    before its response starts, gives its places back when it is collected.
    """

    def __init__(self, admission: "Admission", model: str, num_sequences: int) -> None:
        self._admission: Admission | None = admission
        self._model = model
        self._num_sequences = num_sequences

    def release(self) -> None:
        """Idempotent."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._leave(self._model, self._num_sequences)

    def __del__(self) -> None:
        self.release()


class Admission:
    """Counts sequences of text models and images of image models in flight, waiting or running.
    Event loop only.

    Invariant: `num_in_flight(model)` is the sum of `num_sequences` over the model's live leases,
    and at most its kind's limit, unless a single request asks for more than that.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        max_num_seqs: int,
        max_queued_requests: int,
        max_num_images: int = 1,
        max_queued_images: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_queued_requests = max_queued_requests
        self._max_num_images = max_num_images
        self._max_queued_images = max_queued_images
        self._lifecycle = lifecycle
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._departures: deque[tuple[float, str, int]] = deque(maxlen=256)

    def num_in_flight(self, model: str | None = None) -> int:
        """Sequences of one model, or of all."""
        return sum(self._in_flight.values()) if model is None else self._in_flight.get(model, 0)

    def admit(self, model: str, num_sequences: int = 1) -> Lease:
        """Take places for a request.

        A request for more places than exist enters once it is alone.

        Raises:
            Draining: the server is shutting down.
            QueueFull: too many sequences are in flight. Both carry `retry_after_s`.
        """
        limit = self._max_num_seqs + self._max_queued_requests
        return self._admit(model, num_sequences, limit, self._max_queued_requests, "sequences")

    def admit_images(self, model: str, num_images: int) -> Lease:
        """The same for the images of a request to an image model."""
        limit = self._max_num_images + self._max_queued_images
        return self._admit(model, num_images, limit, self._max_queued_images, "images")

    def _admit(self, model: str, num_more: int, limit: int, max_waiting: int, what: str) -> Lease:
        if self._lifecycle.draining:
            draining = Draining("the server is shutting down; send the request to another one")
            draining.retry_after_s = max(1, math.ceil(self._lifecycle.remaining_drain_s()))
            raise draining
        in_flight = self.num_in_flight(model)
        if in_flight and in_flight + num_more > limit:
            full = QueueFull(
                f"{in_flight} {what} are running or waiting and {num_more} more were asked for; "
                f"the limit is {limit} ({max_waiting} waiting); try again later"
            )
            full.retry_after_s = self._retry_after_s(model, in_flight + num_more - limit)
            raise full
        self._in_flight[model] = in_flight + num_more
        return Lease(self, model, num_more)

    def _leave(self, model: str, num_sequences: int) -> None:
        left = self._in_flight[model] - num_sequences
        if left:
            self._in_flight[model] = left
        else:
            del self._in_flight[model]
        self._departures.append((self._clock(), model, num_sequences))

    def _retry_after_s(self, model: str, num_missing: int) -> int:
        """Seconds until so many places are free, if sequences end as they lately did."""
        now = self._clock()
        recent = [
            (at, num)
            for at, name, num in self._departures
            if name == model and now - at <= _RATE_WINDOW_S
        ]
        num_ended = sum(num for _, num in recent)
        if num_ended == 0:
            return 1
        seconds_per_sequence = (now - recent[0][0]) / num_ended
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(num_missing * seconds_per_sequence)))
