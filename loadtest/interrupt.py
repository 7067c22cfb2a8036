"""Ctrl-C and SIGTERM cancel the innermost interruptible work and keep its results."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside `async with`, a signal cancels the innermost `run`, or else the surrounding task.

    A measurement then ends early with the results so far, and everything else unwinds (which stops
    the servers) as for any cancellation.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []
        self.requested = False

    async def __aenter__(self) -> "Interrupt":
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            for number in _SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self.fire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks.clear()
        with contextlib.suppress(ValueError, RuntimeError):
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)

    def fire(self) -> None:
        """Handle a signal. A second one does nothing, because stopping servers takes time."""
        if self._tasks and not self.requested:
            self._tasks[-1].cancel()
        self.requested = True

    async def run(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await `work`. Returns true if a signal ended it early."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        try:
            await task
        except asyncio.CancelledError:
            if not self.requested:
                task.cancel()
                raise
        finally:
            self._tasks.remove(task)
        return task.cancelled()
