"""Waiting that is fair to a server while this machine does other things."""

import asyncio
from typing import Any

_POLL_S = 0.5
_MOST_LATE_S = 1.0


class PatientClock:
    """Seconds in which this program could run: while it is stopped or starved, the server may be
    as well, and that is not the server's fault."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def sleep(self, seconds: float) -> None:
        """Sleep, and count no more than was asked for and a little."""
        began = _now_s()
        await asyncio.sleep(seconds)
        self._count(began, seconds)

    async def wait_for(self, task: "asyncio.Task[Any]", seconds: float) -> None:
        """Wait until a task is done, or so many seconds have been counted."""
        while not task.done() and self.seconds < seconds:
            began = _now_s()
            await asyncio.wait({task}, timeout=_POLL_S)
            self._count(began, _POLL_S)

    def _count(self, began: float, seconds: float) -> None:
        self.seconds += min(_now_s() - began, seconds + _MOST_LATE_S)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
