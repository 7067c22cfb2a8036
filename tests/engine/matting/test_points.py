"""Points on ten composed pictures whose alpha is known: what the network had right stays right, and
what it had wrong becomes right."""

import random

import cv2
import numpy as np
import pytest

from engine.contract.matte import MattingOutput, Point
from engine.matting.job import Job
from engine.matting.steering import steer
from engine.pictures.arrays import Floats, array_of
from tests.helpers.matting.matting_scenes import TwoSubjects, finished, two_subjects
from tests.helpers.matting.matting_toy import ask

NETWORK_SIDE = 320
BOTH_RIGHT, SECOND_MISSED = (1.0, 1.0), (1.0, 0.0)
SAME = 0.002
"""Mean difference of alpha within which two answers are equally good; a subject has 0.12."""


class Shown:
    """A network that shows what it is given, as coarsely as U²-Net does."""

    def __init__(self, alpha: Floats) -> None:
        small = cv2.resize(alpha, (NETWORK_SIDE, NETWORK_SIDE), interpolation=cv2.INTER_LINEAR)
        self._mask = np.asarray(cv2.GaussianBlur(small, (0, 0), 1.5))

    def mask(self, image: np.ndarray) -> Floats:
        return self._mask


@pytest.fixture(scope="module")
def scenes() -> list[TwoSubjects]:
    return [two_subjects() for _ in range(10)]


def alpha_of(scene: TwoSubjects, found: tuple[float, float], *points: Point) -> Floats:
    """What comes of the picture where the network finds so much of each subject."""
    left, right = (share * alpha for share, alpha in zip(found, scene.alphas, strict=True))
    request = ask("a", image=scene.image, points=list(points), output=MattingOutput.ALPHA)
    event = finished(Job(request, Shown(np.maximum(left, right))).work)
    return array_of(event.image) / np.float32(255)


def error(alpha: Floats, expected: Floats) -> float:
    return float(np.abs(alpha - expected).mean())


def on(scene: TwoSubjects, side: int, *, is_subject: bool) -> Point:
    x, y = scene.places[side]
    dx, dy = (random.randint(-8, 8) for _ in range(2))
    return Point(x=x + dx, y=y + dy, is_subject=is_subject)


def test_points_that_the_mask_agrees_with_change_nothing(scenes):
    for scene in scenes:
        x, y = scene.empty
        background = Point(x=x, y=y, is_subject=False)
        subjects = [on(scene, side, is_subject=True) for side in (0, 1)]
        mask = Shown(np.maximum(*scene.alphas)).mask(scene.image)
        assert np.array_equal(steer(scene.image, mask, None, [background]), mask)
        assert np.array_equal(steer(scene.image, mask, None, [background, *subjects]), mask)
    plain = alpha_of(scene, BOTH_RIGHT)
    assert np.array_equal(alpha_of(scene, BOTH_RIGHT, background, *subjects), plain)


def test_a_point_of_the_background_removes_its_subject_and_nothing_else(scenes):
    for scene in scenes:
        right = alpha_of(scene, SECOND_MISSED)
        alpha = alpha_of(scene, BOTH_RIGHT, on(scene, 1, is_subject=False))
        assert error(alpha, scene.alphas[0]) < error(right, scene.alphas[0]) + SAME


def test_a_point_adds_the_subject_that_was_missed(scenes):
    """In most pictures as if it had not been missed, in the others but for a part of it."""
    worse_by = []
    for scene in scenes:
        both = np.maximum(*scene.alphas)
        alpha = alpha_of(scene, SECOND_MISSED, on(scene, 1, is_subject=True))
        worse_by.append(error(alpha, both) - error(alpha_of(scene, BOTH_RIGHT), both))
    assert max(worse_by) < error(scene.alphas[0], both) / 3
    assert sum(worse < SAME for worse in worse_by) >= 7


def test_a_box_changes_nothing_inside_of_it(scenes):
    for scene in scenes:
        mask = Shown(np.maximum(*scene.alphas)).mask(scene.image)
        height, width = scene.image.shape[:2]
        steered = steer(scene.image, mask, (0, 0, width // 2, height), [])
        half = NETWORK_SIDE // 2
        assert np.array_equal(steered[:, :half], mask[:, :half]) and not steered[:, half:].any()
