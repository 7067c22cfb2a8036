import math

import numpy as np
import pytest

from engine.fidelity.consistency import MAX_PSNR_DB
from tests.helpers.pictures import generator, measure, noise, photograph, resized, rounded


def test_a_picture_agrees_with_itself() -> None:
    picture = noise(20, 30)
    same = measure(picture, picture)
    assert (same.psnr_db, same.rms_error, same.share_changed) == (MAX_PSNR_DB, 0.0, 0.0)


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 3), (4, 3), (4, 4)])
def test_a_shift_of_all_levels_is_the_error(scale: int, channels: int) -> None:
    original = noise(9, 14, channels, low=60, high=61)
    if channels == 4:
        original[..., 3] = 255
    for shift in (1, 7, 9, 40):
        result = np.full((9 * scale, 14 * scale, channels), 60 + shift, np.uint8)
        if channels == 4:
            result[..., 3] = 255
        found = measure(result, original)
        shifted = 3 / channels
        assert found.rms_error == pytest.approx(shift * math.sqrt(shifted), abs=1e-3)
        assert found.psnr_db == pytest.approx(20 * math.log10(255 / found.rms_error), abs=1e-6)
        assert found.share_changed == float(shift > 8)


def test_a_changed_place_shows_in_the_share() -> None:
    original = photograph()
    result = np.repeat(np.repeat(original, 2, 0), 2, 1)
    before = measure(result, original)
    changed = result.copy()
    changed[200:360, 200:360] = 255 - changed[200:360, 200:360]
    after = measure(changed, original)
    assert after.psnr_db < before.psnr_db - 3
    # 80 x 80 of 320 x 320; a mid-grey has no other opposite than itself.
    assert 0.05 < after.share_changed - before.share_changed < 0.07


def test_closer_results_score_higher() -> None:
    whole = photograph("chelsea")
    small = rounded(resized(whole, 75, 113))
    scores = [
        measure(result, small).psnr_db
        for result in (
            np.full_like(whole, 128),
            rounded(resized(rounded(resized(small, 40, 60)), 300, 451)),
            rounded(resized(small, 300, 451)),
            whole,
        )
    ]
    assert scores == sorted(scores)
    # Rounding to bytes is all that is between a picture and its small self.
    assert scores[-1] > 55


def test_detail_finer_than_the_input_is_not_seen() -> None:
    """What the score cannot say: a pattern that averages to nothing."""
    original = np.full((16, 16, 3), 128, np.uint8)
    chessboard = 128 + 60 * (1 - 2 * (np.indices((64, 64)).sum(axis=0) % 2))
    result = np.repeat(chessboard[..., None], 3, axis=2).astype(np.uint8)
    assert measure(result, original).psnr_db > 35


def test_what_is_invisible_does_not_count() -> None:
    original = noise(10, 10, 4)
    original[..., 3] = 0
    result = np.repeat(np.repeat(noise(10, 10, 4), 2, 0), 2, 1)
    result[..., 3] = 0
    assert measure(result, original).psnr_db == MAX_PSNR_DB


def test_any_size_has_a_score() -> None:
    rng = generator()
    for _ in range(30):
        height, width, tall, wide = (int(side) for side in rng.integers(1, 40, 4))
        found = measure(noise(tall, wide), noise(height, width))
        assert 0 < found.psnr_db < MAX_PSNR_DB
        assert 0 <= found.share_changed <= 1
