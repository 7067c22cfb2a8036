"""Requests of items, each answered by one event: in order, counted, closed."""

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from engine.contract.draw import DrawParams, ImageEvent, ImageRequest, ImageStats
from engine.contract.operations import DRAW
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from engine.errors import EngineDead, InvalidParameter, QueueFull, RequestAborted, RequestFailed
from engine.worker.request_stream import RequestStream
from engine.worker.step_listeners import StepListeners
from server.http.admission import Admission, Places
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.item_run import ItemRun
from server.http.lifecycle import Lifecycle

NAMES = ItemNames(
    subsystem="item",
    items="things",
    totals={"num_rows": "Rows."},
    step_sizes={"step_rows": "Rows of a step."},
)


class Engine:
    """What a run and its metrics ask of a client. Any kind will do; this one has images."""

    def __init__(self) -> None:
        self.steps = StepListeners()
        self.stream: Any = None
        self.error: Exception | None = None
        self.aborted: list[str] = []

    def submit(self, request: Any) -> Any:
        if self.error is not None:
            raise self.error
        table: Any = SimpleNamespace(close=lambda s: self.aborted.append(s.request_id))
        self.stream = RequestStream(request, table)
        return self.stream

    def models(self) -> list[Any]:
        return []

    def made_for(self, operation: Any) -> list[Any]:
        return []

    infos = made_for


class Setting:
    def __init__(self) -> None:
        self.now = 0.0
        self.engine = Engine()
        self.registry = CollectorRegistry()
        self.metrics = ItemMetrics(DRAW, NAMES, self.registry, self.engine, clock=lambda: self.now)
        places = Places(what="things", num_running=1, num_waiting=9)
        self.admission = Admission(Lifecycle(1.0), lambda kind, model: places)

    def run(self, num_items: int = 3) -> ItemRun[ImageEvent]:
        lease = self.admission.admit(DRAW, "m", num_items)
        return ItemRun("r", self.engine, self.metrics.meter("m"), lease, num_items)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tandem_item_{name}", {"model_name": "m", **labels})

    def outcomes(self) -> tuple[float | None, ...]:
        return tuple(
            self.value("things_total", outcome=outcome)
            for outcome in ("completed", "cancelled", "failed")
        )


def ask(num_items: int = 3) -> ImageRequest:
    params = DrawParams(width=8, height=8, seed=0, n=num_items)
    return ImageRequest(request_id="r", model="m", prompt="p", params=params)


def end(index: int, **fields: Any) -> ImageEvent:
    return ImageEvent(
        request_id="r", index=index, finish_reason=FinishReason.STOP, seed=10 + index, **fields
    )


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_events_come_in_the_order_of_the_items(setting: Setting) -> None:
    async with aclosing(setting.run()) as run:
        task = asyncio.create_task(run.answers(ask()))
        await asyncio.sleep(0)
        for event in (end(2, queue_time_s=0.25), end(0), end(1)):
            setting.engine.stream.put(event)
        setting.now = 2.0
        assert [event.seed for event in await task] == [10, 11, 12]
    assert setting.outcomes() == (3, 0, 0)
    assert setting.value("queue_seconds_sum") == 0.25
    assert setting.value("request_latency_seconds_sum") == 2.0
    assert setting.admission.num_in_flight("m") == 0


async def test_a_failure_ends_the_request_and_what_is_left_of_it(setting: Setting) -> None:
    with pytest.raises(RequestFailed, match="broken"):
        async with aclosing(setting.run()) as run:
            task = asyncio.create_task(run.answers(ask()))
            await asyncio.sleep(0)
            setting.engine.stream.put(end(0))
            for event in rejection(ask(), RequestFailed("broken"), [1]):
                setting.engine.stream.put(event)
            await task
    assert setting.outcomes() == (1, 0, 2)
    assert setting.engine.aborted == ["r"]
    assert setting.admission.num_in_flight("m") == 0


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [
        (InvalidParameter("bad"), (0, 0, 0)),
        (QueueFull("full"), (0, 0, 3)),
        (EngineDead("dead"), (0, 0, 3)),
    ],
)
async def test_what_was_refused_is_no_item(
    setting: Setting, error: Exception, outcomes: tuple[int, ...]
) -> None:
    setting.engine.error = error
    with pytest.raises(type(error)):
        async with aclosing(setting.run()) as run:
            await run.answers(ask())
    assert setting.outcomes() == outcomes
    assert setting.admission.num_in_flight("m") == 0


def test_steps_are_counted_by_the_fields_that_the_kind_names(setting: Setting) -> None:
    stats = ImageStats(num_steps=2, num_rows=7, step_rows=4, step_time_s=0.5)
    setting.engine.steps.tell("m", stats)
    setting.engine.steps.tell("m", stats)  # nothing new
    assert setting.value("steps_total") == 2
    assert setting.value("rows_total") == 7
    assert setting.value("step_rows_sum") == 4
    assert setting.value("step_seconds_count") == 1
    setting.engine.steps.tell("m", ImageStats(num_steps=1, num_rows=2))  # of a new worker
    assert setting.value("rows_total") == 9


async def test_a_cancel_between_two_pieces_of_work_or_at_the_end_of_one_is_not_lost():
    async def work() -> str:
        return "done"

    between = Setting().run()
    assert await between.perform(work()) == "done"
    await between.cancel()
    with pytest.raises(RequestAborted):
        await between.perform(work())

    at_the_end = Setting().run()

    async def work_that_is_cancelled_when_done() -> str:
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, at_the_end.cancel())
        return "done"

    with pytest.raises(RequestAborted):
        await at_the_end.perform(work_that_is_cancelled_when_done())
