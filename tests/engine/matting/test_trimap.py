"""Trimaps: given ones, and those made of a mask."""

import numpy as np
import pytest

from engine.errors import InvalidParameter
from engine.matting.trimap import Trimap, check_trimap, trimap_of_mask


def disc(side: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (np.hypot(rows - side / 2, columns - side / 2) < radius).astype(np.float32)


def test_levels_are_split_as_pymatting_splits_them() -> None:
    trimap = Trimap.of(np.array([[0, 25, 26, 128, 229, 230, 255]], np.uint8))
    assert trimap.levels().tolist() == [[0, 0, 128, 128, 128, 255, 255]]
    assert np.array_equal(Trimap.of(trimap.levels()).levels(), trimap.levels())
    assert trimap.num_unknown == 3


@pytest.mark.parametrize(("level", "missing"), [(0, "subject"), (255, "background")])
def test_one_without_a_side_is_refused(level: int, missing: str) -> None:
    levels = np.full((4, 4), level, np.uint8)
    levels[0] = 128
    with pytest.raises(InvalidParameter, match=missing):
        check_trimap(Trimap.of(levels))


def test_the_band_grows_with_the_picture() -> None:
    shares = []
    for side in (100, 200, 400):
        trimap = trimap_of_mask(disc(side, side / 4), side, side)
        shares.append(trimap.num_unknown / side**2)
    assert max(shares) < 1.3 * min(shares)


def test_the_pictures_border_is_no_border_of_the_subject() -> None:
    mask = np.zeros((100, 100), np.float32)
    mask[50:] = 1
    trimap = trimap_of_mask(mask, 100, 100)
    assert trimap.is_subject[-1].all() and trimap.is_subject[60:, 0].all()
    assert not trimap.is_unknown[0].any()


def test_a_thin_subject_keeps_its_middle() -> None:
    mask = np.zeros((200, 200), np.float32)
    mask[99:101, 50:150] = 1
    assert trimap_of_mask(mask, 200, 200).is_subject.any()


def test_an_unsure_mask_still_has_a_subject() -> None:
    trimap = trimap_of_mask(disc(100, 30) * 0.7, 100, 100)
    assert trimap.is_subject.any() and trimap.is_unknown.any()


def test_nothing_stays_nothing() -> None:
    trimap = trimap_of_mask(np.zeros((50, 60), np.float32), 100, 120)
    assert trimap.is_subject.shape == (100, 120)
    assert not trimap.is_subject.any() and not trimap.is_unknown.any()
