"""Verdicts come from the pictures, and differences from pairs of pictures of one question."""

import random
from dataclasses import replace

import numpy as np
import pytest

from evaluation.difference import mcnemar
from tools.demo_image_model.palette import COLOURS
from tools.demo_image_model.questions import Ask, Question
from tools.demo_image_model.render import render
from tools.demo_image_model.sampling import to_uint8
from tools.demo_image_model.scenes import Scene, draw_scene, scene_rng
from tools.image_settings.judging import (
    SCORES,
    VISIBLE,
    changed_share,
    differences,
    draw_questions,
    verdicts,
)


def question_of(scene: Scene) -> Question:
    asks = tuple(Ask(item.colour, item.shape) for item in scene.items)
    return Question("", 0, asks, place=scene.place, relation=scene.relation)


def picture_of(scene: Scene) -> np.ndarray:
    return to_uint8((render([scene], 64)[0].permute(1, 2, 0).numpy() + 1) / 2)


@pytest.mark.parametrize("single_share", [0, 1])
def test_a_picture_in_another_colour_is_wrong_in_its_colours_only(single_share):
    scene = draw_scene(scene_rng(random.randrange(2**31), 0), single_share=single_share)
    used = {item.colour for item in scene.items}
    item = replace(scene.items[0], colour=random.choice([c for c in COLOURS if c not in used]))
    other = replace(scene, items=(item, *scene.items[1:]))
    pictures = np.stack([picture_of(scene), picture_of(other)])
    right, wrong = verdicts([question_of(scene)] * 2, pictures)
    assert right["all"] and right["colours"] and right["shapes"]
    assert not wrong["all"] and not wrong["colours"] and wrong["shapes"]
    # The place is the place of what was asked for.
    if "place" in right:
        assert right["place"] and not wrong["place"]
    assert ("place" in right) == bool(scene.place or scene.relation)


def test_differences_are_paired_and_of_the_questions_that_have_the_score():
    num = random.randint(30, 60)
    names = [[n for n in SCORES if n != "place" or random.random() < 0.6] for _ in range(num)]
    sides = [[{n: random.random() < p for n in its} for its in names] for p in (0.8, 0.6)]
    found = differences(*sides)
    for name in SCORES:
        pairs = [(a[name], b[name]) for a, b in zip(*sides, strict=True) if name in a]
        only = [sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)]
        row = found[name]
        assert row["asked"] == len(pairs)
        assert row["difference"] == pytest.approx((only[1] - only[0]) / len(pairs))
        assert row["p_value"] == mcnemar(*only)
        assert row["interval"]["low"] <= row["difference"] <= row["interval"]["high"]


def test_only_visible_changes_count():
    first = np.random.default_rng().integers(64, 192, (3, 16, 16, 3), np.uint8)
    second = first.copy()
    second[0, :4, :4, random.randrange(3)] += VISIBLE + 1
    second[1] -= VISIBLE
    assert changed_share(first, second) == changed_share(second, first) == 16 / (3 * 16 * 16)


def test_questions_differ_and_are_about_one_or_two_objects():
    num = random.randrange(50, 100)
    questions = draw_questions(num)
    assert len({question.seed for question in questions}) == num
    assert sum(len(question.asks) == 1 for question in questions) == -(-num // 3)
