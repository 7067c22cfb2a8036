import itertools

import numpy as np
from pictures import noise

from engine.fidelity.planes import bands, bytes_of, planes_of


def test_pictures_come_back() -> None:
    for channels in (3, 4):
        picture = noise(40, 30, channels)
        again = bytes_of(planes_of(picture), picture)
        assert again.tolist() == picture.tolist()


def test_what_is_invisible_has_no_numbers_and_keeps_its_colour() -> None:
    picture = noise(8, 8, 4)
    picture[..., 3] = 0
    assert not planes_of(picture).any()
    assert bytes_of(planes_of(picture), picture).tolist() == picture.tolist()


def test_levels_are_rounded_and_clipped() -> None:
    planes = np.array([[[-5.0, 12.6, 300.0]]], np.float32)
    assert bytes_of(planes, planes.astype(np.uint8)).tolist() == [[[0, 13, 255]]]
    over = np.array([[[200.0, 80.0, 0.0, 100.0]]], np.float32)
    assert bytes_of(over, np.zeros((1, 1, 4), np.uint8)).tolist() == [[[255, 204, 0, 100]]]


def test_bands_cover_all_rows_once() -> None:
    for height, width in ((1, 1), (7, 1 << 20), (4320, 7680), (100_000, 3)):
        parts = list(bands(height, width))
        assert parts[0][0] == 0 and parts[-1][1] == height
        assert all(end == first for (_, end), (first, _) in itertools.pairwise(parts))
        assert all(first < end for first, end in parts)
