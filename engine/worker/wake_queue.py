"""The requests that wait for their model to wake."""

import asyncio
from collections.abc import Callable


class WakeQueue:
    """The messages of waiting requests, in order. Event loop only.

    Args:
        on_late: called with a request that has waited too long and is forgotten here.
    """

    def __init__(self, on_late: Callable[[str], None]) -> None:
        self._on_late = on_late
        self._waiting: dict[str, tuple[asyncio.TimerHandle, list[list[bytes]]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def add(self, request_id: str, submit: list[bytes], timeout_s: float) -> None:
        """Keep a request's message, at most this long."""
        timer = asyncio.get_running_loop().call_later(timeout_s, self._be_late, request_id)
        self._waiting[request_id] = timer, [submit]

    def abort(self, request_id: str, abort: list[bytes] | None) -> bool:
        """Forget a request or, with a message, only one of its completions. False: it is not
        here."""
        if request_id not in self._waiting:
            return False
        if abort is None:
            self._waiting.pop(request_id)[0].cancel()
        else:
            self._waiting[request_id][1].append(abort)
        return True

    def take(self) -> list[list[bytes]]:
        """Take out the messages of all requests."""
        waiting, self._waiting = self._waiting, {}
        for timer, _ in waiting.values():
            timer.cancel()
        return [message for _, messages in waiting.values() for message in messages]

    def clear(self) -> list[str]:
        """Forget all requests; returns their ids."""
        request_ids = [*self._waiting]
        self.take()
        return request_ids

    def _be_late(self, request_id: str) -> None:
        del self._waiting[request_id]
        self._on_late(request_id)
