"""A limit on the memory that decoded pictures take, for all requests together.

A small file may decode to a thousand times its size. A request takes the memory for its pictures
before they are decoded, and gives it back when it is over; until there is enough, it waits, with
its pictures still encoded.
"""

import asyncio
from dataclasses import dataclass

from engine.errors import InvalidParameter


class PictureBudget:
    """Hands out memory for decoded pictures. Event loop only.

    Invariant: at most `max_bytes` are taken. The requests of one model have at most half of it, or
    a single one of them more, so that requests of other models need not wait for all of them.

    Args:
        max_bytes: limit for the decoded pictures of all requests.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_taken = 0
        self._max_bytes = max_bytes
        self._taken: dict[str, int] = {}
        self._waiting: list[_Waiter] = []
        self._num_asked = 0

    async def take(self, model: str, num_bytes: int, priority: int = 0) -> "PictureShare":
        """Wait for memory: a model's requests get it by priority, then in the order of arrival.

        Raises:
            InvalidParameter: it is more than the limit allows.
        """
        self.check(num_bytes)
        self._num_asked += 1
        waiter = _Waiter(
            (priority, self._num_asked),
            model,
            num_bytes,
            asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(waiter)
        self._waiting.sort(key=lambda one: one.order)
        self._serve()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        return PictureShare(self, model, num_bytes)

    def check(self, num_bytes: int) -> None:
        """Check that one request may take this much.

        Raises:
            InvalidParameter: it is more than the limit allows.
        """
        if num_bytes > self._max_bytes:
            raise InvalidParameter(
                f"the pictures of the request take {num_bytes} bytes once decoded; the limit for "
                f"all requests is {self._max_bytes} bytes (max_decoded_image_bytes); send fewer "
                "or smaller pictures"
            )

    def _serve(self) -> None:
        blocked: set[str] = set()
        for waiter in list(self._waiting):
            if waiter.granted.cancelled():  # it will leave
                continue
            own = self._taken.get(waiter.model, 0)
            if waiter.model in blocked or (own and 2 * (own + waiter.num_bytes) > self._max_bytes):
                blocked.add(waiter.model)
                continue
            if self.num_taken + waiter.num_bytes > self._max_bytes:
                return  # a later request would take what this one waits for
            self._waiting.remove(waiter)
            self._add(waiter.model, waiter.num_bytes)
            waiter.granted.set_result(None)

    def _leave(self, waiter: "_Waiter") -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            self._serve()
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self._give_back(waiter.model, waiter.num_bytes)

    def _add(self, model: str, num_bytes: int) -> None:
        self.num_taken += num_bytes
        self._taken[model] = self._taken.get(model, 0) + num_bytes

    def _give_back(self, model: str, num_bytes: int) -> None:
        self._add(model, -num_bytes)
        if not self._taken[model]:
            del self._taken[model]
        self._serve()


class PictureShare:
    """The memory that one request has taken. It is given back once, however the request ends, even
    if the share is dropped."""

    def __init__(self, budget: PictureBudget, model: str, num_bytes: int) -> None:
        self._budget: PictureBudget | None = budget
        self._model = model
        self._num_bytes = num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Keep only this much: the pictures turned out to be smaller."""
        less = self._num_bytes - num_bytes
        if self._budget is not None and less > 0:
            self._num_bytes = num_bytes
            self._budget._give_back(self._model, less)

    def release(self) -> None:
        """Give the memory back. Idempotent."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget._give_back(self._model, self._num_bytes)

    def __del__(self) -> None:
        self.release()


@dataclass(eq=False, slots=True)
class _Waiter:
    order: tuple[int, int]
    model: str
    num_bytes: int
    granted: "asyncio.Future[None]"
