"""Requests whose adapters are not in place yet, while others are stepped. No torch."""

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from engine.adapter_orders import AdapterShelf
from engine.errors import EngineError
from engine.types import Request

RequestT = TypeVar("RequestT", bound=Request[Any])


class AdapterQueue(Generic[RequestT]):
    """First come, first served: adapters are brought for the first one alone, and whoever finds its
    own in place meanwhile goes on. One that has waited for others' adapters to be free of requests
    is so never overtaken for ever (`AdapterShelf.advance`).

    Requests name adapters by their keys here.
    """

    def __init__(self, shelf: AdapterShelf) -> None:
        self._shelf = shelf
        self._waiting: dict[str, RequestT] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def requests(self) -> list[RequestT]:
        """All of them."""
        return list(self._waiting.values())

    def add(self, request: RequestT) -> None:
        """Have a request wait."""
        self._waiting[request.request_id] = request

    def forget(self, request_id: str) -> None:
        """It has been aborted; unknown ids are ignored."""
        self._waiting.pop(request_id, None)

    def has_work(self) -> bool:
        """Whether `advance` has something to do, or will have."""
        return bool(self._waiting) or self._shelf.has_work()

    def advance(self, in_use: Callable[[], Collection[str]]) -> None:
        """Bring adapters forward, without waiting.

        Args:
            in_use: the keys that requests have which are not in this queue.
        """
        waiting = [request.adapter_names for request in self._waiting.values()]
        if waiting or self._shelf.has_work():
            self._shelf.advance(in_use, waiting)

    def take_ready(self) -> list[tuple[RequestT, EngineError | None]]:
        """Those that wait no longer, in the order of their arrival, each with the reason if its
        adapters cannot be had."""
        ready: list[tuple[RequestT, EngineError | None]] = []
        for request in self.requests():
            keys = request.adapter_names
            error = self._shelf.failure_of(keys)
            if error is not None or self._shelf.take(keys):
                del self._waiting[request.request_id]
                ready.append((request, error))
        return ready
