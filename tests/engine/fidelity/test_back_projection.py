import itertools
import random

import numpy as np
import pytest

from engine.fidelity import back_projection
from engine.fidelity.back_projection import correction
from engine.pictures import arrays
from engine.pictures.arrays import Bytes
from engine.pictures.resampling import Resampling
from tests.helpers.pictures import generator, measure, noise, photograph, resized, rounded

SIZES = [((40, 60), (10, 15)), ((37, 53), (10, 13)), ((30, 20), (15, 20)), ((64, 1), (16, 1))]


def back_project(result: Bytes, original: Bytes, fidelity: float) -> Bytes:
    """A new array."""
    faithful = result.copy()
    back_projection.back_project(faithful, original, fidelity)
    return faithful


@pytest.mark.parametrize(("size", "small"), SIZES)
def test_the_error_falls_in_every_iteration(size: tuple[int, int], small: tuple[int, int]) -> None:
    shrink = Resampling.between(size, small)
    error = generator().standard_normal((*small, 3)).astype(np.float32) * 30
    norms = [np.linalg.norm(error)]
    for num_iterations in (1, 2, 3, 5, back_projection.NUM_ITERATIONS, 20):
        z = correction(error, shrink, num_iterations)
        spread = shrink.transposed_band(z, slice(None))
        left = error - shrink.band(spread, slice(None))
        norms.append(np.linalg.norm(left))
    assert all(after < before for before, after in itertools.pairwise(norms)), norms
    # White noise has the finest errors at their worst.
    assert norms[-2] < 0.02 * norms[0]
    assert norms[-1] < 0.001 * norms[0]


def test_consistency_rises_with_fidelity() -> None:
    whole = photograph(random.choice(["astronaut", "chelsea"]))
    # A result that contradicts its input coarsely and finely, away from the ends of the scale.
    small = rounded(60 + 0.5 * resized(whole, 76, 90))
    result = rounded(40 + 0.6 * resized(small, 301, 357) + noise(301, 357, low=0, high=40))
    scores = [measure(result, small).psnr_db]
    for fidelity in (0.25, 0.5, 0.75, 1.0):
        scores.append(measure(back_project(result, small, fidelity), small).psnr_db)
    assert all(after > before + 1 for before, after in itertools.pairwise(scores)), scores
    assert scores[-1] > 45


def test_no_fidelity_changes_no_byte() -> None:
    for channels in (3, 4):
        result, small = noise(33, 40, channels), noise(8, 10, channels)
        assert back_project(result, small, 0.0).tolist() == result.tolist()


def test_detail_stays() -> None:
    """What is taken back is what the input contradicts: finer detail is left alone."""
    chessboard = 128 + 50 * (1 - 2 * (np.indices((64, 64)).sum(axis=0) % 2))
    result = np.repeat(chessboard[..., None], 3, axis=2).astype(np.uint8)
    faithful = back_project(result, np.full((16, 16, 3), 100, np.uint8), 1.0).astype(int)
    inner = faithful[8:-8, 8:-8]
    assert abs(inner.mean() - 100) < 0.5
    assert abs((inner.max() - inner.min()) - 100) <= 4


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result, small = noise(61, 47, 4), noise(16, 12, 4)
    whole = back_project(result, small, 0.7)
    monkeypatch.setattr(arrays, "BAND_PIXELS", 47 * 5)
    banded = back_project(result, small, 0.7).astype(int)
    # Sums in another order may round the other way, and low alpha widens a level of colour.
    visible = whole[..., 3] > 128
    assert np.abs(banded - whole)[visible].max() <= 2


def test_alpha_is_brought_back_premultiplied() -> None:
    small = np.zeros((16, 16, 4), np.uint8)
    small[:, :8] = (200, 40, 90, 255)
    result = np.repeat(np.repeat(small, 4, 0), 4, 1)
    result[:, :28] = (180, 60, 90, 230)
    faithful = back_project(result, small, 1.0)
    assert measure(faithful, small).psnr_db > measure(result, small).psnr_db + 10
    inner = faithful[8:-8, 8:20].astype(int)
    assert np.abs(inner - (200, 40, 90, 255)).max() <= 4
    assert not faithful[:, 48:, 3].any()
