"""Stages of two kinds in one engine: turns, steps, cancels, faults and release are the same."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from engine.contract.request import FinishReason
from engine.diffusion.denoising import Denoising
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_factory import DrawingFactory
from engine.pictures.arrays import array_of
from engine.runtime.fault import Unusable
from tests.helpers.diffusion.doubling import DOUBLE, Doubling, DoublingSource
from tests.helpers.diffusion.engine_runs import results, run
from tests.helpers.diffusion.toy_family import ToyFamily, picture, request

DENOISE = "a red circle"


def double(request_id="d", size=(32, 32), seed=0, num_steps=4, **changes):
    changes |= {"seed": seed, "num_inference_steps": num_steps}
    return request(request_id, DOUBLE, image=picture(*size, seed), **changes)


def asked(prompt, request_id, num_steps=4, **changes):
    """The same request for a stage of either kind."""
    if prompt == DOUBLE:
        return double(request_id, num_steps=num_steps, **changes)
    return request(request_id, num_inference_steps=num_steps, **changes)


def expected_of(item):
    """By indexing, which is not how it is computed."""
    levels = array_of(item.images[0])
    rows, columns = (np.arange(2 * side) // 2 for side in levels.shape[:2])
    return levels[rows][:, columns]


@pytest.fixture
def family():
    return ToyFamily()


@pytest.fixture
def source(family):
    return DoublingSource(DrawingFactory(family))


@pytest.fixture
def make_both(make_engine, source):
    return lambda **changes: make_engine(source=source, **changes)


def alive(request_id):
    """Drawings and stages that the process still holds of a request."""
    gc.collect()
    drawings = [thing for thing in gc.get_objects() if type(thing) is Drawing]
    mine = [drawing for drawing in drawings if drawing.request.request_id == request_id]
    return mine + [drawing.stage for drawing in mine]


def num_stages():
    gc.collect()
    return sum(type(thing) in (Doubling, Denoising) for thing in gc.get_objects())


def test_both_are_what_they_are_alone(make_engine, make_both):
    items = [
        request("a", seed=1, num_inference_steps=6, n=2),
        double("b", seed=2, num_steps=3),
        request("c", seed=3, num_inference_steps=4, scheduler="euler_ancestral"),
        double("d", (48, 36), seed=4, num_steps=1),
        double("e", seed=5, num_steps=5, n=2),
    ]
    together = results(run(make_both(deterministic=True), items, arrivals=[0, 0, 2, 2, 3]))
    alone = results(run(make_engine(deterministic=True), [items[0], items[2]]))
    assert {key for key in together if key[0] in "ac"} == alone.keys()
    assert all(np.array_equal(together[key], alone[key]) for key in alone)
    for item in (items[1], items[3], items[4]):
        for index in range(item.params.n):
            levels = together.pop((item.request_id, index))
            assert np.array_equal(levels, expected_of(item).ravel()), item.request_id
    assert together.keys() == alone.keys()


def test_stages_of_one_kind_and_group_share_calls_and_others_do_not(make_both, family, source):
    """Both kinds' calls assert that no call mixes kinds; the names of their groups are equal."""
    engine = make_both()
    groups = {Drawing.group.fget(drawing)[1] for item in (request(), double())
              for drawing in source.create(item)}  # fmt: skip
    assert len(groups) == 1
    run(engine, [*(double(f"d{i}", seed=i) for i in range(3)), double("other", (48, 36)),
                 *(request(f"r{i}") for i in range(3))])  # fmt: skip
    shared = [("double", 3, (32, 32, 3))] * 4
    assert [call for call in source.calls if call[1] > 1] == shared
    assert len(source.calls) == len(shared) + 4
    assert [rows for _, rows, _ in family.calls] == [6] * 4
    stats = engine.stats()
    assert (stats.num_steps, stats.num_images) == (12, 7)
    assert (stats.num_rows, stats.num_image_steps) == (4 * (3 + 1 + 6), 4 * (3 + 1 + 3))


def test_neither_kind_waits_for_the_other_to_end(make_both, family, source):
    engine = make_both()
    engine.add(request("r", num_inference_steps=50))
    engine.add(double("d", num_steps=30))
    while not source.calls or not family.calls:
        assert len(source.calls) + len(family.calls) < 3
        engine.step()
    assert {"r", "d"} == {key[0] for key in results(run(engine))}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("fcfs", ["r0", "d0", "r1", "d1", "r2"]), ("priority", ["r0", "d1", "r2", "d0", "r1"])],
)
def test_they_wait_in_one_queue(make_both, policy, expected):
    engine = make_both(max_num_images=1, scheduling_policy=policy)
    engine.add(request("r0"))
    engine.step()
    for name in ("d0", "r1", "d1", "r2"):
        item = asked(DOUBLE if name[0] == "d" else DENOISE, name)
        engine.add(replace(item, priority=-1 if name in ("d1", "r2") else 0))
    assert [e.request_id for e in run(engine) if e.image is not None] == expected


@pytest.mark.parametrize("prompt", [DOUBLE, DENOISE])
def test_progress_and_times_are_told_alike(make_both, prompt):
    item = asked(prompt, "r", seed=7, num_previews=2)
    events = run(make_both(), [item])
    name = "double" if prompt == DOUBLE else "denoise"
    assert {(e.stage, e.num_steps, e.seed) for e in events} == {(name, 4, 7)}
    plain = [e for e in events if e.preview is None and e.image is None]
    assert [e.step for e in plain] == [0, 1, 2, 3, 4]
    previews = [(e.preview_index, e.step) for e in events if e.preview is not None]
    assert previews == [(0, 2), (1, 3)]
    assert events[0].queue_time_s is not None
    last = events[-1]
    assert last.finish_reason is FinishReason.STOP and last.image is not None
    assert last.stage_time_s > 0 and last.decode_time_s > 0


@pytest.mark.parametrize("prompt", [DOUBLE, DENOISE])
def test_one_that_is_cancelled_takes_no_further_step_and_is_released(
    make_both, family, source, prompt
):
    engine = make_both()
    engine.add(asked(prompt, "gone", num_steps=50, n=2))
    engine.add(asked(prompt, "waits"))
    for _ in range(3):
        engine.step()
    assert len(alive("gone")) == 4
    for request_id in ("gone", "waits", "never was"):
        engine.abort(request_id)
    num_calls = len(family.calls) + len(source.calls)
    assert run(engine) == []
    assert len(family.calls) + len(source.calls) == num_calls
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_cancelled_steps >= 2 * 47
    assert len(engine._scheduler) == 0
    assert alive("gone") == alive("waits") == []


@pytest.mark.parametrize("prompt", [DOUBLE, DENOISE])
def test_one_that_is_finished_is_released(make_both, prompt):
    before = num_stages()
    engine = make_both()
    events = run(engine, [asked(prompt, "done", n=2)])
    assert len(results(events)) == 2
    assert alive("done") == []
    assert num_stages() == before


@pytest.mark.parametrize("method", ["compute", "advance", "result", "preview", "picture"])
@pytest.mark.parametrize("kind", [Doubling, Denoising])
def test_one_that_fails_ends_alone_and_is_released(make_both, monkeypatch, kind, method):
    """The culprit is the one with five steps, among three that share its calls."""
    prompt = DOUBLE if kind is Doubling else DENOISE
    original = getattr(kind, "result" if method == "picture" else method)

    def picture_fails():
        raise Unusable("no numbers")

    def broken(self, *args):
        if self.num_steps == 5 and self.step >= 2:
            if method == "picture":
                return picture_fails
            raise ZeroDivisionError
        if method == "compute" and any(stage.num_steps == 5 for stage in args[0]):
            return original(self, *args) if args[0][0].step < 2 else 1 / 0
        return original(self, *args)

    monkeypatch.setattr(kind, "result" if method == "picture" else method, broken)
    items = [asked(prompt, f"{n}", num_steps=n, num_previews=2) for n in (4, 5, 6)]
    other = double("other") if prompt == DENOISE else request("other")
    engine = make_both()
    events = run(engine, [*items, other])
    failed = [e for e in events if e.failure is not None]
    assert [(e.request_id, e.failure.code) for e in failed] == [("5", "request_failed")]
    assert {key[0] for key in results(events)} == {"4", "6", "other"}
    assert (engine.stats().num_running, len(engine._scheduler)) == (0, 0)
    assert alive("5") == []


def test_one_whose_rows_cannot_be_counted_ends_alone(make_both, monkeypatch):
    def broken(self):
        return 1 if self.num_steps != 5 or self.step < 2 else 1 // 0

    monkeypatch.setattr(Doubling, "num_rows", property(broken))
    events = run(make_both(), [*(double(f"{n}", num_steps=n) for n in (4, 5, 6)), request("r")])
    assert [e.request_id for e in events if e.failure is not None] == ["5"]
    assert {key[0] for key in results(events)} == {"4", "6", "r"}


def test_a_call_that_gives_too_little_fails(make_both, monkeypatch):
    monkeypatch.setattr(Doubling, "compute", lambda self, stages: [])
    events = run(make_both(), [double("a"), double("b"), request("r")])
    failed = [e.request_id for e in events if e.failure is not None]
    assert failed == ["a", "b"]
    assert {key[0] for key in results(events)} == {"r"}


def test_a_model_may_have_the_other_stage_alone(make_engine):
    source = DoublingSource()
    engine = make_engine(source=source)
    item = double("d", num_steps=1)
    [levels] = results(run(engine, [item])).values()
    assert np.array_equal(levels, expected_of(item).ravel())
    stats = engine.stats()
    assert (stats.num_steps, stats.num_images, stats.prompt_cache_queries) == (1, 1, 0)
    engine.reset_totals()
    assert engine.stats().num_images == 0
