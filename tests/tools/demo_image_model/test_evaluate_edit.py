"""The judge of edits: right on the generator's own targets, not fooled by doing nothing."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tools.demo_image_model.classify import read
from tools.demo_image_model.edits import KINDS, NAMINGS, Edit, draw_contrast_edit, draw_edit
from tools.demo_image_model.evaluate_edit import judge_edit, pictures
from tools.demo_image_model.scenes import Scene


def draw_targets(edits: list[Edit], size: int) -> np.ndarray:
    return pictures([replace(edit, source=edit.target) for edit in edits], size)


@pytest.fixture
def seed() -> int:
    return random.randrange(2**31)


@pytest.mark.parametrize("size", [64, 128])
def test_targets_succeed(seed, size):
    edits = [draw_edit(seed, i) for i in range(100)]
    verdicts = [
        judge_edit(e, read(p)) for e, p in zip(edits, draw_targets(edits, size), strict=True)
    ]
    assert np.mean([v["success"] for v in verdicts]) >= 0.99


@pytest.mark.parametrize("naming", NAMINGS)
def test_targets_of_small_objects_succeed_and_changing_the_other_fails(seed, naming):
    edits = [draw_contrast_edit(seed, i, naming) for i in range(60)]
    drawn = draw_targets(edits, 64)
    verdicts = [judge_edit(e, read(p)) for e, p in zip(edits, drawn, strict=True)]
    assert np.mean([v["success"] for v in verdicts]) >= 0.95
    wrong = [e for e in edits if e.kind == "recolour"]
    for edit in wrong:
        small, large = edit.source.items
        new = edit.target.items[0].colour
        swapped = Scene(edit.source.background, (small, replace(large, colour=new)))
        picture = draw_targets([replace(edit, target=swapped)], 64)[0]
        assert not judge_edit(edit, read(picture))["success"], edit


def test_doing_nothing_fails(seed):
    edits = [draw_edit(seed, i) for i in range(100)]
    verdicts = [judge_edit(e, read(p)) for e, p in zip(edits, pictures(edits, 64), strict=True)]
    failed = [e for e, v in zip(edits, verdicts, strict=True) if v["edited"]]
    assert not failed, failed[0]


def test_changing_something_else_too_fails(seed):
    edits = [e for e in (draw_edit(seed, i) for i in range(150)) if e.kind != "background"][:60]
    other = {"white": "brown", "black": "white", "gray": "black", "brown": "gray"}
    wrong = [
        replace(e, target=replace(e.target, background=other[e.target.background])) for e in edits
    ]
    verdicts = [judge_edit(e, read(p)) for e, p in zip(edits, draw_targets(wrong, 64), strict=True)]
    assert not any(v["kept"] or v["success"] for v in verdicts)


def test_moving_the_other_object_fails(seed):
    for index in range(300):
        edit = draw_edit(seed, index)
        if edit.kind != "recolour" or len(edit.target.items) != 2:
            continue
        other = 1 - edit.changed
        item = edit.target.items[other]
        items = list(edit.target.items)
        shift = 0.1 if item.x < 0.5 else -0.1
        items[other] = replace(item, x=item.x + shift)
        moved = replace(edit, target=Scene(edit.target.background, tuple(items)))
        verdict = judge_edit(edit, read(draw_targets([moved], 64)[0]))
        assert not verdict["success"], index


def test_added_object_may_be_anywhere_unless_said(seed):
    free = bound = 0
    for index in range(300):
        edit = draw_edit(seed, index)
        if edit.kind != "add" or edit.source.items:
            continue
        item = edit.target.items[0]
        elsewhere = replace(item, x=1 - item.x, y=1 - item.y)
        if abs(item.x - 0.5) < 0.15 and abs(item.y - 0.5) < 0.15:
            continue
        moved = replace(edit, target=replace(edit.target, items=(elsewhere,)))
        verdict = judge_edit(edit, read(draw_targets([moved], 64)[0]))
        assert verdict["success"] == (edit.target.place is None), index
        free += edit.target.place is None
        bound += edit.target.place is not None
    assert free and bound


def test_kinds_are_all_judged():
    assert {draw_edit(0, i).kind for i in range(200)} == set(KINDS)
