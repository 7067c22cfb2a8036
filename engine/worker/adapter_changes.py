"""Orders about adapters that a worker has not answered yet."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.errors import EngineError
from engine.worker import messages


class AdapterChanges:
    """The unanswered orders of one supervisor. Used on the event loop only.

    Args:
        send: sends a message to the running worker.
    """

    def __init__(self, send: Callable[[messages.ToWorker], None]) -> None:
        self._send = send
        self._ids = count()
        self._loads: dict[int, tuple[AdapterOrder, asyncio.Future[AdapterReport]]] = {}
        self._unloads: dict[int, tuple[str, asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        """Whether any order is unanswered."""
        return bool(self._loads or self._unloads)

    def __contains__(self, name: str) -> bool:
        """Whether an adapter of that name is being loaded or unloaded."""
        coming = [order.name for order, _ in self._loads.values()]
        return name in coming or name in [going for going, _ in self._unloads.values()]

    def load(self, order: AdapterOrder) -> asyncio.Future[AdapterReport]:
        """Order a load. The future's exception says why it failed."""
        id = next(self._ids)
        future: asyncio.Future[AdapterReport] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_note_seen)
        self._loads[id] = (order, future)
        self._send(messages.LoadAdapter(id, order))
        return future

    def unload(
        self, name: str, drain_timeout_s: float, on_late: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Order that an adapter takes no more requests. Done when none is left; `on_late` ends
        those that are left after the timeout."""
        id = next(self._ids)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unloads[id] = (name, gone)
        self._send(messages.UnloadAdapter(id, name))

        async def wait() -> None:
            done, _ = await asyncio.wait([gone], timeout=drain_timeout_s)
            if not done:
                on_late()
            await gone

        return asyncio.create_task(wait())

    def end(self, answer: messages.AdapterChanged) -> AdapterOrder | None:
        """Take in the worker's answer; returns the order if an adapter was loaded."""
        error = None if answer.failure is None else answer.failure.error()
        if answer.id in self._unloads:
            _settle(self._unloads.pop(answer.id)[1], None, error)
            return None
        order, loaded = self._loads.pop(answer.id)
        _settle(loaded, answer.report, error)
        return order if error is None else None

    def end_all(self, error: EngineError) -> None:
        """End all orders after the worker's end: loads fail with `error`, and unloads are done."""
        for _, loaded in self._loads.values():
            _settle(loaded, None, error)
        for _, gone in self._unloads.values():
            _settle(gone, None, None)
        self._loads, self._unloads = {}, {}


def _settle(future: asyncio.Future[Any], result: Any, error: EngineError | None) -> None:
    """Give a future its result or error, if it is still pending."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _note_seen(future: asyncio.Future[Any]) -> None:
    """Mark a future's exception as seen, since the caller may have left."""
    if not future.cancelled():
        future.exception()
