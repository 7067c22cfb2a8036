"""Requests that wait for their adapters while others are stepped. Imports no torch."""

import time
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from engine.contract.adapter_orders import ServedAdapters
from engine.contract.request import Request
from engine.errors import EngineError
from engine.runtime.fault import answer_for

RequestT = TypeVar("RequestT", bound=Request[Any])


class AdapterQueue(Generic[RequestT]):
    """Waiting requests, first come, first served.

    Adapters are loaded for the first request only. A later request goes ahead if its own adapters
    are already in place. A request that waits for adapters to become free is therefore not
    overtaken forever (`ServedAdapters.advance`). Requests name adapters by their keys here.
    """

    def __init__(self, adapters: ServedAdapters) -> None:
        self._adapters = adapters
        self._waiting: dict[str, tuple[RequestT, float]] = {}
        """The requests with the times at which they came."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def requests(self) -> list[RequestT]:
        """All waiting requests."""
        return [request for request, _ in self._waiting.values()]

    def add(self, request: RequestT) -> None:
        """Add a request that waits."""
        self._waiting[request.request_id] = request, time.time()

    def forget(self, request_id: str) -> None:
        """Remove an aborted request; unknown ids are ignored."""
        self._waiting.pop(request_id, None)

    def has_work(self) -> bool:
        """Whether `advance` has work now or will have some."""
        return bool(self._waiting) or self._adapters.has_work()

    def advance(
        self, in_use: Callable[[], Collection[str]], begin: Callable[[RequestT], None]
    ) -> list[tuple[RequestT, EngineError]]:
        """Move the loading of adapters on without waiting, and begin the requests whose adapters
        are in place, in the order of arrival. Returns the requests that cannot begin, each with the
        reason.

        Args:
            in_use: the keys of requests that are not in this queue.
        """
        if not self.has_work():
            return []
        self._adapters.advance(in_use, [request.adapter_names for request in self.requests()])
        refused: list[tuple[RequestT, EngineError]] = []
        for request, start_s in list(self._waiting.values()):
            reason = self._adapters.failure_of(request.adapter_names)
            if reason is None and not self._adapters.take(request.adapter_names):
                continue
            del self._waiting[request.request_id]
            try:
                if reason is not None:
                    raise reason
                begin(request.after("adapter", start_s))
            except Exception as error:
                refused.append((request, answer_for(error, request.request_id)))
        return refused
