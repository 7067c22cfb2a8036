import itertools
import random

import torch

from engine.diffusion.tiling import tile


def fresh_tiling():
    unit = random.choice([1, 1, 2, 3])
    sides = [unit * random.randint(1, 40) for _ in range(2)]
    tiles = [unit * random.randint(1, 20) for _ in range(2)]
    return tile(*sides, *tiles, unit), sides, tiles, unit


def test_tiles_are_of_one_size_cover_all_and_overlap():
    for _ in range(300):
        tiling, sides, tiles, unit = fresh_tiling()
        assert (tiling.height, tiling.width) == tuple(sides)
        expected = tuple(min(pair) for pair in zip(sides, tiles, strict=True))
        assert tiling.tile_size == expected
        covered = torch.zeros(sides)
        for window in tiling.windows:
            assert covered[window].shape == expected
            covered[window] += 1
        assert covered.min() >= 1, (sides, tiles, unit)
        for axis in (0, 1):
            starts = sorted({window[axis].start for window in tiling.windows})
            assert starts[0] == 0 and starts[-1] == sides[axis] - expected[axis]
            assert all(start % unit == 0 for start in starts)
            gaps = [after - before for before, after in itertools.pairwise(starts)]
            least = min(expected[axis] // unit - 1, -(-expected[axis] // unit // 4)) * unit
            assert all(expected[axis] - gap >= least for gap in gaps), (sides, tiles, unit)
            assert max(gaps, default=0) - min(gaps, default=0) <= unit, "spread evenly"


def test_what_is_cut_is_merged_again():
    for _ in range(30):
        tiling, sides, _, _ = fresh_tiling()
        picture = torch.randn(2, 3, *sides)
        merged = tiling.merged(picture[(..., *window)] for window in tiling.windows)
        torch.testing.assert_close(merged, picture, atol=1e-5, rtol=1e-5)
        flat = torch.full((1, 1, *sides), 0.7)
        merged = tiling.merged(flat[(..., *window)] for window in tiling.windows)
        torch.testing.assert_close(merged, flat, atol=1e-6, rtol=0)


def test_a_tile_counts_little_at_its_edges():
    tiling = tile(8, 100, 8, 40)
    left = torch.zeros(1, 1, 8, 40)
    tiles = [left + index for index in range(len(tiling.windows))]
    merged = tiling.merged(tiles)[0, 0]
    assert merged[:, 0].tolist() == [0.0] * 8
    assert merged[:, -1].tolist() == [float(len(tiles) - 1)] * 8
    assert merged.diff(dim=1).abs().max() < 0.2, "no jump where a tile begins"


def test_tiles_of_a_few_cells_show_no_edges():
    """Of neighbours that differ by 1, where one begins in the middle of the other."""
    tiling = tile(1, 16, 1, 8)
    tiles = [torch.full((1, 1, 1, 8), float(index)) for index in range(len(tiling.windows))]
    assert len(tiles) == 3
    assert tiling.merged(tiles)[0, 0, 0].diff().abs().max() < 0.26


def test_the_same_tiles_at_another_scale():
    tiling = tile(12, 20, 6, 8, 2)
    larger = tiling.scaled(4)
    assert larger.tile_size == (24, 32)
    assert [(r.start, c.start) for r, c in larger.windows] == [
        (4 * r.start, 4 * c.start) for r, c in tiling.windows
    ]
