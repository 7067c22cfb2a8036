"""What every engine of turns does alike: queue, order, aborts, faults, trials."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import ModelLoadError, QueueFull
from tests.helpers.matting import matting_toy
from tests.helpers.models import embedding_toy
from tests.helpers.models.embedding_toy import HOLLOW, POISON
from tests.helpers.models.embedding_toy import ask as texts
from tests.helpers.upscaling.upscaling_nets import PlainNet, upscale_request, upscaling_engine

FAILED = "request_failed"


class Case(NamedTuple):
    """An engine with one kind of work, and requests for it."""

    make: Callable[..., Any]
    ask: Callable[..., Any]
    alone: dict[str, int]
    """Limits with which a step takes one turn."""
    full: str
    """What the third request is told where two may wait."""


def fragile(images: Tensor) -> Tensor:
    """Return the images. Level 0 raises an error, 1 takes all memory, 2 becomes NaN."""
    levels = (255 * images[:, :1, :1, :1]).round()
    if levels.min() < 2:
        raise MemoryError if levels.min() else ValueError("a fault")
    return torch.where(levels == 2, torch.nan, images)


def grey(request_id: str, level: int = 9, **fields: Any) -> Any:
    image = np.full((50, 50, 3), level, np.uint8)
    return upscale_request(image, PlainNet(fragile), request_id=request_id, **fields)


def green(request_id: str) -> Any:
    return matting_toy.ask(request_id, image=np.full((48, 64, 3), (0, 255, 0), np.uint8))


EMBEDDING = Case(
    lambda **limits: embedding_toy.make(**{"max_num_queued": 99} | limits)[0],
    lambda request_id, **fields: texts(request_id, [1, 2], [3], [4], **fields),
    {"max_num_seqs": 1},
    "2 requests are waiting already; try again later",
)
UPSCALING = Case(
    lambda **limits: upscaling_engine(PlainNet(fragile), **limits),
    grey,
    {"max_num_rows": 1},
    "2 images are waiting already; try again later",
)
MATTING = Case(
    matting_toy.make,
    matting_toy.ask,
    {"max_num_images": 1},
    "2 pictures are waiting already; try again later",
)
every_kind = pytest.mark.parametrize("case", [EMBEDDING, UPSCALING, MATTING])


def run(engine: Any) -> dict[str, list[Any]]:
    """The events of each request, in the order of their ends; times of waiting are left out."""
    found: dict[str, list[Any]] = {}
    while engine.has_work():
        for event in engine.step()[0]:
            events = found.pop(event.request_id, [])
            found[event.request_id] = [*events, replace(event, queue_time_s=None)]
    return found


def ends(events: list[Any]) -> list[str | None]:
    """The code of the failure, if any, with which each completion ended."""
    return [one.failure and one.failure.code for one in events if one.finish_reason is not None]


@every_kind
def test_a_full_queue_refuses_until_requests_have_begun(case):
    engine = case.make(max_num_queued=2)
    engine.add(case.ask("a"))
    engine.add(case.ask("b"))
    with pytest.raises(QueueFull) as caught:
        engine.add(case.ask("c"))
    assert str(caught.value) == case.full
    engine.step()
    engine.add(case.ask("c"))
    assert set(run(engine)) == set("abc")


def test_a_request_of_many_turns_leaves_the_queue_and_the_next_turns_to_others():
    engine, _ = embedding_toy.make(max_num_queued=2, max_num_seqs=2)
    many = random.randrange(20, 40)
    engine.add(texts("many", *[[1]] * many))
    engine.step()
    engine.add(texts("one", [1]))
    assert "one" in [event.request_id for event in engine.step()[0]]
    assert len(run(engine)["many"]) == many - 3


@every_kind
@pytest.mark.parametrize(("policy", "order"), [("fcfs", "abc"), ("priority", "cba")])
def test_the_policy_decides_who_goes_first(case, policy, order):
    engine = case.make(scheduling_policy=policy, **case.alone)
    for name, priority in (("a", 5), ("b", 0), ("c", -5)):
        engine.add(case.ask(name, priority=priority))
    assert list(run(engine)) == list(order)


def test_turns_go_round_among_equals_and_to_newcomers_that_are_more_important():
    for policy, expected in (("fcfs", [1, 2, 3, 1, 2, 4, 3]), ("priority", [2, 3, 4, 2, 3, 1, 1])):
        engine, toy = embedding_toy.make(max_num_seqs=1, scheduling_policy=policy)
        for number, priority in ((1, 5), (2, -1), (3, -1)):
            engine.add(texts(str(number), [number], [number], priority=priority))
        engine.step()
        engine.step()
        engine.add(texts("late", [4], priority=-2))
        run(engine)
        assert [text[0] for [text] in toy.calls] == expected


@every_kind
def test_an_aborted_request_gets_no_further_turn(case):
    for num_steps in random.sample(range(12), 5):
        engine, before = case.make(**random.choice([case.alone, {}])), []
        for name in "ab":
            engine.add(case.ask(name))
        for _ in range(num_steps):
            before += engine.step()[0] if engine.has_work() else []
        dropped = [one for one in engine._queue if one.request.request_id == "a"]
        engine.abort("nobody")
        engine.abort("a")
        assert all(one.job.work.gi_frame is None for one in dropped if case is MATTING), "closed"
        after = run(engine)
        assert set(after) <= {"b"}
        events = [event for event in before if event.request_id == "b"] + after.get("b", [])
        assert ends(events) == [None] * case.ask("b").num_completions
        stats = engine.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)


@pytest.mark.parametrize(
    ("case", "bad", "expected"),
    [
        (EMBEDDING, texts("bad", [1], [POISON], [4]), [None, FAILED, None]),
        (EMBEDDING, texts("bad", [3, HOLLOW]), [FAILED]),
        (UPSCALING, grey("bad", level=0), [FAILED]),
        (UPSCALING, grey("bad", level=1), ["over_capacity"]),
        (UPSCALING, grey("bad", level=2), [FAILED]),
        (MATTING, green("bad"), [FAILED]),
    ],
)
def test_a_fault_ends_its_own_completion(case, bad, expected):
    good, alone, engine = case.ask("good"), case.make(), case.make()
    for request in random.sample([good, bad], 2):
        engine.add(request)
    alone.add(good)
    found = run(engine)
    assert found["good"] == run(alone)["good"]
    assert ends(found["bad"]) == expected
    assert [one.index for one in found["bad"] if one.finish_reason] == [*range(len(expected))]
    trial = case.make(**case.alone)
    with pytest.raises(ModelLoadError, match=r"a trial failed: .*; the server's log"):
        trial.try_out([bad], "a trial failed: {reason}")
    assert trial.has_work() == (len(expected) > 1), "only other completions go on"


@every_kind
def test_a_trial_is_not_counted(case):
    engine = case.make()
    engine.try_out([case.ask("trial")], "never said")
    assert engine.stats() == type(engine.stats())()
