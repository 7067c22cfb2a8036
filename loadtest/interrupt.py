"""Ctrl-C and SIGTERM: the innermost interruptible work is cancelled, its results are kept."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside `async with`, a signal cancels the innermost `run`, or else the surrounding task.

    So a measurement ends early with what it has, and everything else unwinds (stopping servers on
    its way) as for any cancellation.
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
        """What a signal does. A second one does nothing: stopping servers takes its time."""
        if self._tasks and not self.requested:
            self._tasks[-1].cancel()
        self.requested = True

    async def run(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await `work`; true when a signal ended it early."""
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
