"""Holds requests while the executor prepares what they need and others run."""

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.contract.generate import GenerateRequest
from engine.contract.structure import Structure
from engine.llm.executor import Executor


class Preparation:
    """Requests whose structure has no grammar yet."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: dict[str, tuple[GenerateRequest, Future[object], float]] = {}
        """The requests with the times at which they came."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def requests(self) -> list[GenerateRequest]:
        """All waiting requests."""
        return [request for request, _, _ in self._waiting.values()]

    def add(self, request: GenerateRequest, structure: Structure) -> None:
        """Begin to prepare a request's structure."""
        prepared = self._executor.prepare(structure, request.client)
        self._waiting[request.request_id] = (request, prepared, time.time())

    def forget(self, request_id: str) -> None:
        """Forget an aborted request; unknown ids are ignored."""
        if request_id in self._waiting:
            _, future, _ = self._waiting.pop(request_id)
            future.cancel()

    def take_ready(self) -> list[tuple[GenerateRequest, "Future[object]"]]:
        """Remove and return the requests whose structure is ready or refused, with the outcome, in
        the order of their arrival."""
        ready = [entry for entry in self._waiting.values() if entry[1].done()]
        for request, _, _ in ready:
            del self._waiting[request.request_id]
        return [(request.after("structure", start_s), future) for request, future, start_s in ready]

    def wait(self, seconds: float) -> None:
        """Wait until one of them is ready, but at most `seconds`."""
        futures = [future for _, future, _ in self._waiting.values()]
        wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
