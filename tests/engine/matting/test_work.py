"""Pictures in progress: whose turn it is, and what comes out."""

import random
from typing import Any

import numpy as np
import pytest

from engine.contract.matte import MattingEvent, MattingOutput, MattingRequest, Point
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter
from engine.matting import work as work_module
from engine.matting.job import NO_SUBJECT
from engine.pictures.arrays import array_of, pixels_of
from tests.helpers.matting.matting_scenes import scene
from tests.helpers.matting.matting_toy import ask, make, run


@pytest.mark.parametrize(
    ("output", "channels"), [("cutout", 4), ("alpha", 1), ("trimap", 1), ("composite", 3)]
)
@pytest.mark.parametrize("with_trimap", [True, False])
def test_outputs(output: str, channels: int, with_trimap: bool) -> None:
    made = scene(48, 64, 3)
    trimap = pixels_of(made.trimap.levels()) if with_trimap else None
    asked = ask("a", image=made.image, trimap=trimap, output=MattingOutput(output))
    event = run(make(), asked)["a"]
    assert event.finish_reason is FinishReason.STOP and event.warnings == ()
    assert (event.image.width, event.image.height, event.image.channels) == (64, 48, channels)
    assert 0 < event.unknown_fraction < 1 and 0 <= event.uncertain_fraction <= 1
    if with_trimap:
        assert event.unknown_fraction == made.trimap.num_unknown / made.alpha.size
        if output == "trimap":
            assert event.image == trimap
        if output in ("alpha", "cutout"):
            levels = array_of(event.image)
            levels = levels if output == "alpha" else levels[..., 3]
            assert np.abs(levels / 255 - made.alpha).mean() < 0.02


def test_what_comes_out_does_not_depend_on_company() -> None:
    """Equal bits alone, beside others, and in another order."""
    pictures = [scene(40 + 8 * i, 64, 3).image for i in range(3)]
    orders = [
        {"image": pictures[0]},
        {"image": pictures[1], "box": (10, 5, 54, 43)},
        {"image": pictures[2]},
    ]
    alone = [run(make(), ask("x", **fields))["x"].image for fields in orders]
    numbers = random.sample(range(3), 3)
    together = run(make(), *(ask(str(number), **orders[number]) for number in numbers))
    assert [together[str(number)].image for number in range(3)] == alone


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def script(monkeypatch, clock, turns):
    """Have jobs do nothing but take so many seconds in each turn; notes whose turn it was."""
    order: list[str] = []

    class Scripted:
        stage, progress, num_unknown = "solve", 0.5, 0

        def __init__(self, request: MattingRequest, network: Any) -> None:
            self.work = self.run(request.request_id)

        def run(self, name: str) -> Any:
            for seconds in turns[name]:
                order.append(name)
                clock.now_s += seconds
                yield
            return MattingEvent(request_id=name, finish_reason=FinishReason.STOP)

    monkeypatch.setattr(work_module, "Job", Scripted)
    return order


def test_pictures_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one that comes later gets as much time as the large one, and is soon done; the large
    one is not starved by it."""
    clock = Clock()
    turns = {"large": [1.0] * 20, "small": [0.25] * 8, "other": [0.25] * 40}
    order = script(monkeypatch, clock, turns)
    engine = make(clock=clock)
    engine.add(ask("large"))
    for _ in range(5):
        engine.step()
    engine.add(ask("small"))
    engine.add(ask("other"))
    for _ in range(24):
        engine.step()
    later = order[5:]
    assert later.count("small") == 8
    assert later.index("large") <= 8
    assert 0.5 <= later.count("large") / (0.25 * later.count("other")) <= 2


def test_those_that_do_not_fit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "WORK_BYTES", 1)
    engine = make()
    engine.add(ask("a"))
    engine.add(ask("b"))
    _, stats = engine.step()
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert run(engine).keys() == {"a", "b"}


def test_events_tell_how_far_it_is() -> None:
    engine = make()
    engine.add(ask("a", points=[Point(x=32, y=24, is_subject=True)]))
    stages, progress = [], []
    while engine.has_work():
        for event in engine.step()[0]:
            stages.append(event.stage)
            progress.append(event.progress)
    expected = ["segment", "steer", "trimap", "solve", "foreground", "compose"]
    assert [stage for stage in stages if stage] == expected
    assert progress == sorted(progress) and progress[-1] == 1.0


def test_totals() -> None:
    engine, made = make(), scene(48, 64, 3)
    run(engine, ask("a", image=made.image, trimap=pixels_of(made.trimap.levels())))
    stats = engine.stats()
    expected = (1, 48 * 64, made.trimap.num_unknown)
    assert (stats.num_images, stats.num_pixels, stats.num_unknown_pixels) == expected
    assert stats.num_steps > 3


def test_no_subject_is_all_background_with_a_warning() -> None:
    event = run(make(), ask("a", image=np.full((30, 40, 3), (0, 0, 200), np.uint8)))["a"]
    assert event.warnings == (NO_SUBJECT,)
    assert not array_of(event.image)[..., 3].any()


def test_alpha_that_a_picture_has_is_kept() -> None:
    image = np.dstack([scene(48, 64, 3).image, np.full((48, 64), 100, np.uint8)])
    event = run(make(), ask("a", image=image, output=MattingOutput.ALPHA))["a"]
    assert array_of(event.image).max() == 100


def test_a_background_picture_shows_where_the_subject_is_not() -> None:
    made = scene(48, 64, 3)
    asked = ask(
        "a",
        image=made.image,
        trimap=pixels_of(made.trimap.levels()),
        output=MattingOutput.COMPOSITE,
        background=pixels_of(np.full((5, 9, 3), (9, 99, 9), np.uint8)),
    )
    result = array_of(run(make(), asked)["a"].image)
    nothing = ~made.trimap.is_subject & ~made.trimap.is_unknown
    assert (result[nothing] == (9, 99, 9)).all()
    assert np.array_equal(result[made.trimap.is_subject], made.image[made.trimap.is_subject])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"box": (0, 0, 65, 48)}, "box"),
        ({"box": (5, 5, 5, 9)}, "box"),
        ({"points": [Point(x=64, y=0, is_subject=True)]}, "points"),
        ({"trimap": Pixels(width=48, height=64, channels=1, data=bytes(48 * 64))}, "trimap"),
        ({"trimap": Pixels(width=64, height=48, channels=1, data=bytes(48 * 64))}, "trimap"),
    ],
)
def test_bad_requests_are_refused(fields: dict[str, Any], param: str) -> None:
    engine = make()
    with pytest.raises(InvalidParameter) as caught:
        engine.add(ask("a", **fields))
    assert caught.value.param == param
    assert not engine.has_work()
