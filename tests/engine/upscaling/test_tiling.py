"""Tiles along a side: all of it is covered, by shares that add up to 1."""

import random

import numpy as np

from engine.upscaling.tiling import mirrored, plan_side


def test_tiles_are_of_one_size_cover_the_side_and_overlap_enough() -> None:
    for _ in range(200):
        multiple = random.choice((1, 2, 4))
        overlap = random.randrange(0, 40)
        tile = random.randrange(overlap + 4 * multiple, 120) // multiple * multiple
        overlap = min(overlap, tile - multiple)
        length = random.randrange(1, 400) * multiple
        rim = random.randrange(0, overlap // 2 + 1)
        side = plan_side(length, tile, overlap, rim=rim, scale=2, multiple=multiple)
        assert side.tile == min(tile, length)
        assert side.starts[0] == 0 and side.length == length
        assert all(start % multiple == 0 for start in side.starts)
        advances = np.diff(side.starts)
        assert all(0 < advance <= side.tile - overlap for advance in advances) or multiple > 1
        assert all(0 < advance <= side.tile for advance in advances)
        # Evenly: no advance is longer than another by more than a step of the grid.
        assert advances.size == 0 or advances.max() - advances.min() <= multiple


def test_the_shares_of_each_pixel_add_up_to_one_and_rims_count_nothing() -> None:
    for _ in range(100):
        overlap = random.randrange(2, 30)
        tile, rim = random.randrange(overlap + 1, 80), random.randrange(0, overlap // 2 + 1)
        length, scale = random.randrange(1, 300), random.choice((1, 2, 3))
        side = plan_side(length, tile, overlap, rim=rim, scale=scale)
        total = np.zeros(length * scale)
        for number, (start, shares) in enumerate(zip(side.starts, side.shares, strict=True)):
            total[start * scale : (start + side.tile) * scale] += shares
            if number > 0:
                assert not shares[: rim * scale].any()
            if number + 1 < len(side.starts):
                assert not shares[len(shares) - rim * scale :].any()
        np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_a_mirror_is_numpys_where_numpy_has_one() -> None:
    for _ in range(50):
        length, before, after = (random.randrange(1, 30) for _ in range(3))
        expected = np.pad(np.arange(length), (before, after), mode="reflect")
        assert (mirrored(length, -before, length + after) == expected).all()
