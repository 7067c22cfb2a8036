"""A box and points correct a network's mask."""

import numpy as np
import pytest

from engine.contract.matte import Box, Point
from engine.matting.steering import steer

LEFT, RIGHT = (24, 30), (72, 30)
"""Middles of two discs, (x, y)."""


def two_discs() -> np.ndarray:
    rows, columns = np.mgrid[:60, :96]
    noise = (rows * 7 + columns * 13) % 17
    image = np.stack([noise, 40 + noise, 120 + noise], axis=-1)
    for x, y in (LEFT, RIGHT):
        inside = np.hypot(rows - y, columns - x) < 14
        image[inside] = np.stack([200 + noise, 90 + noise, 30 + noise], axis=-1)[inside]
    return image.astype(np.uint8)


def found(mask: np.ndarray, box: Box | None = None, *points: Point) -> tuple[bool, bool]:
    """Whether each disc is in the corrected mask."""
    result = steer(two_discs(), mask.astype(np.float32), box, points)
    height, width = result.shape
    return tuple(  # type: ignore[return-value]
        bool(result[y * height // 60, x * width // 96] > 0.5) for x, y in (LEFT, RIGHT)
    )


BOTH = np.ones((60, 96)) * (two_discs()[..., 0] > 100)


def test_a_box_is_what_is_looked_at() -> None:
    assert found(BOTH, (0, 0, 96, 60)) == (True, True)
    assert found(BOTH, (50, 5, 94, 55)) == (False, True), "outside of it is background"
    missed = np.zeros((60, 96))
    assert found(missed, (50, 5, 94, 55)) == (False, True), "the network had missed it"


def test_a_point_chooses_its_part() -> None:
    assert found(BOTH, None, Point(x=24, y=30, is_subject=True)) == (True, False)


def test_a_point_of_the_background_takes_its_part_away() -> None:
    marks = [
        Point(x=72 + dx, y=30 + dy, is_subject=False) for dx in (-6, 0, 6) for dy in (-6, 0, 6)
    ]
    assert found(BOTH, None, *marks)[0]
    result = steer(two_discs(), BOTH.astype(np.float32), None, marks)
    assert result[30, 72] < 0.1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_one_side_only_is_an_answer(value: float) -> None:
    image = np.full((40, 50, 3), 77, np.uint8)
    mask = np.full((40, 50), value, np.float32)
    points = [Point(x=49, y=39, is_subject=True), Point(x=0, y=0, is_subject=False)]
    result = steer(image, mask, None, points)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_the_same_marks_give_the_same_mask() -> None:
    results = [steer(two_discs(), BOTH.astype(np.float32), (2, 2, 94, 58), []) for _ in range(2)]
    assert np.array_equal(*results)


def test_one_pixel() -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    points = [Point(x=0, y=0, is_subject=True)]
    assert steer(image, np.ones((1, 1), np.float32), (0, 0, 1, 1), points).shape == (1, 1)
