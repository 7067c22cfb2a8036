"""Editing pairs: determinism, honesty of the instruction, no held-out pair, known words only."""

import random
from itertools import pairwise

import numpy as np
import pytest

from tools.demo_image_model.captions import BACKGROUND_WORDS, SIZE_WORDS, vocabulary
from tools.demo_image_model.edits import (
    CONTRAST_KINDS,
    KINDS,
    MOVES,
    NAMINGS,
    Edit,
    draw_contrast_edit,
    draw_edit,
    draw_training_edit,
    move_phrases,
)
from tools.demo_image_model.palette import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES

NUM = 3000


@pytest.fixture(scope="module")
def seed() -> int:
    return random.randrange(2**31)


@pytest.fixture(scope="module")
def edits(seed) -> list[Edit]:
    return [draw_edit(seed, i) for i in range(NUM)]


def pairs(scene):
    return [(item.colour, item.shape) for item in scene.items]


def test_same_index_same_edit(seed, edits):
    assert [draw_edit(seed, i) for i in reversed(range(50))] == edits[:50][::-1]
    assert draw_edit(seed + 1, 0) != edits[0]


def test_no_held_out_pair(seed, edits):
    for edit in edits:
        assert not HELD_OUT & {*pairs(edit.source), *pairs(edit.target)}, edit


def test_instructions_name_no_held_out_pair(seed, edits):
    for edit in edits:
        words = edit.instruction.split()
        neighbours = set(pairwise(words))
        assert not HELD_OUT & neighbours, edit.instruction


def test_only_known_words(seed, edits):
    known = set(vocabulary())
    for edit in edits:
        assert set(edit.instruction.split()) <= known, edit.instruction


def test_every_kind_is_drawn_often(seed, edits):
    for kind in KINDS:
        share = sum(edit.kind == kind for edit in edits) / NUM
        assert share > 0.6 / len(KINDS), kind


def test_only_what_is_said_changes(seed, edits):
    for edit in edits:
        assert edit.source != edit.target, edit
        if edit.kind == "background":
            said = set(BACKGROUND_WORDS[edit.target.background])
            assert said & set(edit.instruction.split()), edit
            assert edit.source.items == edit.target.items, edit
            continue
        assert edit.source.background == edit.target.background, edit
        kept = [i for n, i in enumerate(edit.target.items) if n != edit.changed]
        assert all(item in edit.source.items for item in kept), edit
        lost = len(edit.source.items) - len(edit.target.items)
        assert lost == {"remove": 1, "add": -1}.get(edit.kind, 0), edit


def test_the_new_attribute_is_named(seed, edits):
    for edit in edits:
        if edit.changed is None:
            continue
        words, item = edit.instruction.split(), edit.target.items[edit.changed]
        if edit.kind in ("recolour", "replace", "add"):
            assert item.colour in words, edit
        if edit.kind in ("reshape", "replace", "add"):
            assert item.shape in words, edit
        if edit.kind == "resize" or (edit.kind == "add" and edit.size_said):
            assert set(SIZE_WORDS[item.size]) & set(words), edit
        if edit.kind == "move":
            ways = [phrase for way in MOVES for phrase in move_phrases(way)]
            assert any(edit.instruction.endswith(way) for way in ways), edit


def test_exactly_one_object_is_meant(seed, edits):
    """Words after `the` and before the change fit one object of the source only."""
    for edit in edits:
        if edit.kind in ("add", "background") or len(edit.source.items) < 2:
            continue
        words = edit.instruction.split()
        start = words.index("the")
        while words[start + 1] == "color":
            start = words.index("the", start + 1)
        named = words[start + 1 : start + 3]
        colour = next((w for w in named if w in COLOURS), None)
        shape = next((w for w in named if w in SHAPES), None)
        if named[0] in SHAPES:  # `the circle blue`: the colour is the new one
            colour = None
        fits = [
            item
            for item in edit.source.items
            if colour in (None, item.colour) and shape in (None, item.shape)
        ]
        assert len(fits) == 1 and (colour or shape), edit
        if edit.kind == "remove":
            assert fits[0] not in edit.target.items, edit


def test_objects_stay_inside_and_apart(seed, edits):
    for edit in edits:
        for item in edit.target.items:
            inside = item.radius < min(item.x, item.y, 1 - item.x, 1 - item.y)
            assert inside, edit
        if len(edit.target.items) == 2 and edit.kind not in ("background", "remove"):
            a, b = edit.target.items
            distance = np.hypot(a.x - b.x, a.y - b.y)
            assert distance > a.radius + b.radius, edit


def test_backgrounds_are_known(seed, edits):
    assert {edit.target.background for edit in edits} == set(BACKGROUNDS)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_contrast_edit_names_the_object_of_its_size(seed, naming, size):
    kinds = set()
    for i in range(200):
        edit = draw_contrast_edit(seed, i, naming, size=size)
        kinds.add(edit.kind)
        named, other = edit.source.items
        assert named.size == size != other.size, edit
        assert named.colour != other.colour and named.shape != other.shape, edit
        assert other in edit.target.items and named not in edit.target.items, edit
        words = edit.instruction.split()
        if naming == "colour":
            assert named.colour in words, edit
        if naming == "shape":
            assert named.shape in words, edit
        if naming == "size":
            assert set(SIZE_WORDS[size]) & set(words), edit
        if naming == "place":
            across, down = named.x - other.x, named.y - other.y
            first, second = ("left", "right") if abs(across) >= abs(down) else ("top", "bottom")
            before = across < 0 if first == "left" else down < 0
            where = f"{'on' if first == 'left' else 'at'} the {first if before else second}"
            assert where in edit.instruction, edit
        assert set(words) <= set(vocabulary()), edit
        assert not HELD_OUT & {*pairs(edit.source), *pairs(edit.target)}, edit
    assert kinds == set(CONTRAST_KINDS)


def test_training_shows_small_objects_beside_large_ones_often(seed):
    edits = [draw_training_edit(seed, i) for i in range(NUM)]
    named = [e for e in edits if e.kind in CONTRAST_KINDS and len(e.source.items) == 2]
    small = 0
    for edit in named:
        a, b = edit.source.items
        meant = a if b in edit.target.items else b
        small += meant.size == "small" and {a.size, b.size} == {"small", "large"}
    assert small / NUM > 0.2
    assert {edit.kind for edit in edits} == set(KINDS)
    assert draw_training_edit(seed, 5) == edits[5]
