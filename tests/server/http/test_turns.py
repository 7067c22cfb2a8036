"""Long work on an event loop is done in turns with everybody else's."""

import asyncio
import random
import time

from server.http import turns
from server.http.turns import in_turns


async def test_others_have_a_turn_after_each_long_item() -> None:
    seen: list[str] = []

    async def other() -> None:
        for _ in range(20):
            seen.append("other")
            await asyncio.sleep(0)

    def work(item: int) -> int:
        time.sleep(2 * turns.TURN_S)
        seen.append("work")
        return -item

    items = [random.randrange(100) for _ in range(random.randrange(3, 9))]
    task = asyncio.create_task(other())
    assert await in_turns(work, iter(items)) == [-item for item in items]
    worked = [number for number, who in enumerate(seen) if who == "work"]
    assert all(seen[number + 1] == "other" for number in worked[:-1])
    await task


async def test_short_items_are_done_at_once(monkeypatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 60.0)
    task = asyncio.create_task(asyncio.sleep(0, "other"))
    assert await in_turns(str, range(1000)) == [str(number) for number in range(1000)]
    assert not task.done()
    await task
