"""What the watch over a server finds, and what it does not mistake for slow code."""

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import stalls
from tests.helpers.stalls import LIMIT_S, StallWatch, findings


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    path = tmp_path / "findings"
    monkeypatch.setenv(stalls.VARIABLE, str(path))
    callbacks = list(gc.callbacks)
    gc.disable()  # a test process has much to walk
    yield lambda: findings(path)
    gc.enable()
    gc.callbacks[:] = callbacks


def compute(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        sum(range(100))


def watched_run(main: Callable[[], object]) -> None:
    with asyncio.Runner() as runner:
        StallWatch("test").loop(runner.get_loop())
        runner.run(main())  # type: ignore[arg-type]


def test_a_step_of_a_task_that_computes_for_long_is_found(found: Callable[[], list[str]]) -> None:
    async def busy() -> None:
        compute(2 * LIMIT_S)

    async def main() -> None:
        await asyncio.sleep(0)
        await busy()

    watched_run(main)
    (finding,) = found()
    assert finding.startswith("test: ") and "busy" in finding and "compute" in finding


def test_callbacks_of_every_kind_are_watched(found: Callable[[], list[str]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.call_later(0.001, compute, 2 * LIMIT_S)
        loop.call_soon(compute, 2 * LIMIT_S)
        loop.call_soon_threadsafe(compute, 2 * LIMIT_S)
        loop.call_at(loop.time() + 0.002, done.set)
        await done.wait()

    watched_run(main)
    assert len(found()) == 3


def test_waiting_other_threads_and_short_work_are_not_found(
    found: Callable[[], list[str]],
) -> None:
    async def main() -> None:
        time.sleep(3 * LIMIT_S)  # noqa: ASYNC251 (as where the machine is busy with others)
        await asyncio.to_thread(compute, 2 * LIMIT_S)
        for _ in range(random.randrange(8, 16)):
            compute(LIMIT_S / 5)
            await asyncio.sleep(0)

    watched_run(main)
    assert found() == []


def test_methods_are_watched_and_give_what_they_give(found: Callable[[], list[str]]) -> None:
    class Worker:
        def work(self, seconds: float, *, answer: int) -> int:
            compute(seconds)
            if answer < 0:
                raise ValueError
            return answer

    StallWatch("test").methods(Worker, "work")
    number = random.randrange(100)
    assert Worker().work(0.0, answer=number) == number
    assert found() == []
    assert Worker().work(2 * LIMIT_S, answer=number) == number
    with pytest.raises(ValueError):
        Worker().work(2 * LIMIT_S, answer=-1)
    assert [finding.split(" took ")[0] for finding in found()] == ["test: Worker.work"] * 2


def test_nothing_is_found_before_it_is_on(found: Callable[[], list[str]]) -> None:
    watch = StallWatch("test")

    class Worker:
        def work(self) -> None:
            compute(2 * LIMIT_S)

    watch.methods(Worker, "work")
    watch.is_on = False
    Worker().work()
    assert found() == []
    watch.is_on = True
    Worker().work()
    assert len(found()) == 1


def test_collections_count_by_themselves(
    found: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "LIMIT_S", 0.01)  # a fast processor collects two million in 0.05 s
    watch = StallWatch("test")

    class Worker:
        def work(self) -> None:
            gc.collect()

    watch.methods(Worker, "work")
    Worker().work()
    before = len(found())
    keep = [[] for _ in range(1 << 21)]  # type: ignore[var-annotated]
    Worker().work()
    assert len(keep) == 1 << 21
    (finding,) = found()[before:]
    assert finding.startswith("test: garbage collection of generation 2")
