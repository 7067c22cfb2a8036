import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import generator, noise, resized

from engine.fidelity import planes as planes_module
from engine.fidelity.resampling import Resampling, kernel_matrix, shrunk

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
    picture = noise(*before)
    whole = resized(picture, *after)
    for rows in (1, 3, 1000):
        monkeypatch.setattr(planes_module, "_BAND_PIXELS", rows * before[1])
        assert np.abs(shrunk(picture, *after) - whole).max() < 1e-3, rows
    resampling = Resampling.between(before, after)
    for first in range(after[0]):
        band = resampling.band(picture.astype(np.float32), first, first + 1)
        assert np.abs(band[0] - whole[first]).max() < 1e-3, first


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_transpose_is_the_transpose(before: tuple[int, int], after: tuple[int, int]) -> None:
    rng, resampling = generator(), Resampling.between(before, after)
    x = rng.standard_normal((*before, 3), np.float32)
    y = rng.standard_normal((*after, 3), np.float32)
    there = (resampling.band(x, 0, after[0]) * y).sum(dtype=np.float64)
    middle = before[0] // 2
    back = [resampling.transposed_band(y, 0, middle)] if middle else []
    back.append(resampling.transposed_band(y, middle, before[0]))
    again = (np.concatenate(back) * x).sum(dtype=np.float64)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(there - again) < 1e-6 * scale
