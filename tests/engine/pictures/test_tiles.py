import random

import numpy as np
import torch

from engine.pictures.tiles import Side, TileRows, Tiling, mirrored


def test_tiles_are_of_one_size_cover_the_side_and_overlap_enough() -> None:
    for _ in range(200):
        multiple = random.choice((1, 2, 4))
        overlap = random.randrange(0, 40)
        tile = random.randrange(overlap + 4 * multiple, 120) // multiple * multiple
        overlap = min(overlap, tile - multiple)
        length = random.randrange(1, 400) * multiple
        side = Side.planned(length, tile, overlap, multiple)
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
        side, rim = Side.planned(length, tile, overlap).scaled(scale), rim * scale
        total = np.zeros(length * scale)
        for number, (start, shares) in enumerate(zip(side.starts, side.shares(rim), strict=True)):
            total[start : start + side.tile] += shares
            if number > 0:
                assert not shares[:rim].any()
            if number + 1 < len(side.starts):
                assert not shares[len(shares) - rim :].any()
        np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_a_mirror_is_numpys_where_numpy_has_one() -> None:
    for _ in range(50):
        length, before, after = (random.randrange(1, 30) for _ in range(3))
        expected = np.pad(np.arange(length), (before, after), mode="reflect")
        assert (mirrored(length, -before, length + after) == expected).all()


def test_rows_of_tiles_make_the_whole() -> None:
    """A row comes as soon as no further tile touches it."""
    for _ in range(20):
        lengths, overlap = random.choices(range(1, 41), k=2), random.randint(0, 6)
        down, across = (Side.planned(length, overlap + 9, overlap) for length in lengths)
        picture = torch.rand(3, *lengths)
        merged, made = TileRows(across, down, overlap // 2, 3), []
        places = [(top, left) for top in down.starts for left in across.starts]
        for number, (top, left) in enumerate(places):
            tile = picture[:, top : top + down.tile, left : left + across.tile]
            rows = merged.add(number, tile)
            assert (rows is None) == (left != across.starts[-1])
            made += [] if rows is None else [rows]
        torch.testing.assert_close(torch.cat(made, 1), picture)


def test_what_is_cut_is_merged_again() -> None:
    for _ in range(30):
        unit = random.choice([1, 2, 3])
        sides = [unit * random.randint(1, 40) for _ in range(2)]
        tiles = [unit * random.randint(1, 20) for _ in range(2)]
        tiling = Tiling.planned(*sides, *tiles, unit)
        assert tiling.tile_size == tuple(map(min, sides, tiles))
        for axis, tile in enumerate(tiling.tile_size):
            gaps = np.diff(sorted({window[axis].start for window in tiling.windows}))
            assert all(tile - gaps >= min(tile - unit, tile / 4))
        picture = torch.randn(2, 3, *sides)
        merged = tiling.merged(picture[(..., *window)] for window in tiling.windows)
        torch.testing.assert_close(merged, picture, atol=1e-5, rtol=1e-5)
        flat = torch.full((1, 1, *sides), 0.7)
        merged = tiling.merged(flat[(..., *window)] for window in tiling.windows)
        torch.testing.assert_close(merged, flat, atol=1e-6, rtol=0)


def test_a_tile_counts_little_at_its_edges() -> None:
    tiling = Tiling.planned(8, 100, 8, 40)
    left = torch.zeros(1, 1, 8, 40)
    tiles = [left + index for index in range(len(tiling.windows))]
    merged = tiling.merged(tiles)[0, 0]
    assert merged[:, 0].tolist() == [0.0] * 8
    assert merged[:, -1].tolist() == [float(len(tiles) - 1)] * 8
    assert merged.diff(dim=1).abs().max() < 0.2, "no jump where a tile begins"


def test_tiles_of_a_few_cells_show_no_edges() -> None:
    """Of neighbours that differ by 1, where one begins in the middle of the other."""
    tiling = Tiling.planned(1, 16, 1, 8)
    tiles = [torch.full((1, 1, 1, 8), float(index)) for index in range(len(tiling.windows))]
    assert len(tiles) == 3
    assert tiling.merged(tiles)[0, 0, 0].diff().abs().max() < 0.26


def test_the_same_tiles_at_another_scale() -> None:
    tiling = Tiling.planned(12, 20, 6, 8, 2)
    larger = tiling.scaled(4)
    assert larger.tile_size == (24, 32)
    assert [(r.start, c.start) for r, c in larger.windows] == [
        (4 * r.start, 4 * c.start) for r, c in tiling.windows
    ]
