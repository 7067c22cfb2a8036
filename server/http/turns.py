"""Long work on the event loop in short pieces, between which everybody else is served."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

TURN_S = 0.002

T = TypeVar("T")
U = TypeVar("U")


class Turns:
    """Of one piece of work, from its begin on."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()

    async def give(self) -> None:
        """Let others have one, if this work has had the event loop for some milliseconds."""
        if time.perf_counter() - self._begun_s > TURN_S:
            await asyncio.sleep(0)
            self._begun_s = time.perf_counter()


async def in_turns(work: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """`work` on each item; others have turns in between."""
    results: list[U] = []
    turns = Turns()
    for item in items:
        results.append(work(item))
        await turns.give()
    return results
