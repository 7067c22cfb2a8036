"""Limits of time that do not count time in which this process itself was suspended: a machine that
slept, a container that was paused, a SIGSTOP. The process that was to answer was suspended as
well."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

_TICK_S = 0.1
_MOST_TICK_S = 2 * _TICK_S
"""The most that a tick counts, however late it comes."""

T = TypeVar("T")


@contextlib.asynccontextmanager
async def fair_timeout(seconds: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, raises TimeoutError."""
    loop = asyncio.get_running_loop()
    left_s, last_s = seconds, loop.time()
    next_tick: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def tick() -> None:
            nonlocal left_s, last_s, next_tick
            now_s = loop.time()
            left_s -= min(now_s - last_s, _MOST_TICK_S)
            last_s = now_s
            if left_s <= 0:
                limit.reschedule(now_s)
            else:
                next_tick = loop.call_later(min(left_s, _TICK_S), tick)

        next_tick = loop.call_later(min(left_s, _TICK_S), tick)
        try:
            yield
        finally:
            next_tick.cancel()


class Patience:
    """The seconds that are left for several waits at a socket.

    Args:
        set_timeout: of the socket; `settimeout`.
    """

    def __init__(self, set_timeout: Callable[[float], None], seconds: float) -> None:
        self._set_timeout = set_timeout
        self._left_s = seconds

    def wait(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which is repeated while it times out.

        Raises:
            TimeoutError: no seconds are left.
        """
        while self._left_s > 0:
            began_s = time.monotonic()
            self._set_timeout(min(self._left_s, _TICK_S))
            try:
                return work()
            except TimeoutError:
                continue
            finally:
                self._left_s -= min(time.monotonic() - began_s, _MOST_TICK_S)
        raise TimeoutError
