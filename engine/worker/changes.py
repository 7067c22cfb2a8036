"""What a client has begun that goes on whether or not somebody waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class Changes:
    """Unfinished tasks. An error that nobody waits for is not told: a status or log says it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, change: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Start a task and keep it until it ends."""
        return self.keep(asyncio.create_task(change))

    def keep(self, task: asyncio.Task[ResultT]) -> asyncio.Task[ResultT]:
        """Keep a task until it ends."""
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def wait(self) -> None:
        """Return once those that are unfinished now have ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen, in case nobody waited
