"""Does long work on the event loop in short pieces, so that others are served in between."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

TURN_S = 0.002

T = TypeVar("T")
U = TypeVar("U")


class Turns:
    """The turns of one piece of work, counted from its creation."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()

    async def give(self) -> None:
        """Give others a turn, if this work has held the event loop for some milliseconds."""
        if time.perf_counter() - self._begun_s > TURN_S:
            await asyncio.sleep(0)
            self._begun_s = time.perf_counter()


async def in_turns(work: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """The results of `work` on each item; others get turns in between."""
    results: list[U] = []
    turns = Turns()
    for item in items:
        results.append(work(item))
        await turns.give()
    return results
