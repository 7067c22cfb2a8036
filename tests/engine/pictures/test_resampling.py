import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from engine.pictures import arrays
from engine.pictures.resampling import Resampling, RowResampler, kernel_matrix
from tests.helpers.pictures import generator, noise, resized

SIZES = [
    ((64, 48), (16, 12)),
    ((31, 45), (8, 11)),
    ((9, 7), (36, 28)),
    ((40, 1), (10, 1)),
    ((1, 1), (5, 3)),
    ((7, 5), (1, 1)),
    ((6, 6), (6, 6)),
]


def fresh_size() -> tuple[int, int]:
    return random.randint(1, 70), random.randint(1, 70)


@pytest.mark.parametrize(("before", "after"), [*SIZES, *((fresh_size(), fresh_size()),) * 8])
def test_torch_resamples_in_the_same_way(before: tuple[int, int], after: tuple[int, int]) -> None:
    picture = noise(*before)
    tensor = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()
    # torch 2 is wrong where planes become one pixel wide; with channels last it is right.
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    theirs = F.interpolate(tensor, size=after, mode="bicubic", antialias=True)[0]
    ours = resized(picture, *after)
    # Sums of up to a few hundred fp32 products of levels.
    assert np.abs(ours - theirs.permute(1, 2, 0).numpy()).max() < 2e-3, (before, after)


@pytest.mark.parametrize("smooth", [False, True])
def test_means_are_means(smooth: bool) -> None:
    for _ in range(50):
        before, after = fresh_size()
        matrix = kernel_matrix(before, after, smooth=smooth)
        assert matrix.shape == (after, before)
        assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-6, (before, after)
        if smooth:
            assert matrix.data.min() > 0, (before, after)


def test_an_equal_size_changes_nothing() -> None:
    picture = noise(9, 13)
    assert resized(picture, 9, 13).tolist() == picture.tolist()


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bands_make_the_whole(
    before: tuple[int, int], after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, resampling = noise(*before), Resampling.between(before, after)
    whole = resized(picture, *after)
    for rows in (1, 3, 1000):
        monkeypatch.setattr(arrays, "BAND_PIXELS", rows * before[1])
        assert np.abs(resampling.whole(picture) - whole).max() < 1e-3, rows
    for first in range(after[0]):
        band = resampling.band(picture.astype(np.float32), slice(first, first + 1))
        assert np.abs(band[0] - whole[first]).max() < 1e-3, first


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_transpose_is_the_transpose(before: tuple[int, int], after: tuple[int, int]) -> None:
    rng, resampling = generator(), Resampling.between(before, after)
    x = rng.standard_normal((*before, 3), np.float32)
    y = rng.standard_normal((*after, 3), np.float32)
    there = (resampling.band(x, slice(None)) * y).sum(dtype=np.float64)
    middle = before[0] // 2
    back = [resampling.transposed_band(y, slice(middle))] if middle else []
    back.append(resampling.transposed_band(y, slice(middle, before[0])))
    again = (np.concatenate(back) * x).sum(dtype=np.float64)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(there - again) < 1e-6 * scale


def test_rows_that_come_in_any_pieces_give_pillows_image() -> None:
    for _ in range(20):
        before = fresh_size()
        after = random.randint(1, 2 * before[0]), random.randint(1, 2 * before[1])
        plane = generator().random(before, np.float32)
        resampler = RowResampler(before, after)
        made, at = [], 0
        while at < before[0]:
            step = random.randrange(9)
            made.append(resampler.add(plane[at : at + step, :, None]))
            at += step
        method = Image.Resampling.BICUBIC
        expected = np.asarray(Image.fromarray(plane).resize(after[::-1], method))
        np.testing.assert_allclose(np.concatenate(made)[..., 0], expected, atol=2e-5)
