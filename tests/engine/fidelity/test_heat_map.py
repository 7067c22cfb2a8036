import numpy as np

from engine.pictures.arrays import Bytes
from tests.helpers.pictures import generator, heat_map, noise, photograph, resized, rounded


def colours(picture: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """How red, and how blue each pixel is beside its other colour."""
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return red - blue, blue - red


def test_a_plain_enlargement_of_a_flat_picture_stays_grey() -> None:
    map_ = heat_map(np.full((40, 60, 3), 200, np.uint8), np.full((10, 15, 3), 200, np.uint8))
    assert map_.shape == (10, 15, 3)
    assert (map_ == 80).all()


def test_fine_detail_is_blue_and_contradiction_red() -> None:
    original = np.full((40, 40, 3), 128, np.uint8)
    result = np.full((160, 160, 3), 128, np.uint8)
    chessboard = 128 + 60 * (1 - 2 * (np.indices((40, 40)).sum(axis=0) % 2))
    result[20:60, 20:60] = chessboard[..., None]
    result[100:140, 100:140] = 200
    red, blue = colours(heat_map(result, original))
    assert blue[7:13, 7:13].min() > 150
    assert red[27:33, 27:33].min() > 150
    assert np.abs(red[7:13, 27:33]).max() == 0


def test_a_photograph_enlarged_plainly_is_less_blue_than_the_true_one() -> None:
    whole = photograph()
    small = rounded(resized(whole, 80, 80))
    plain = rounded(resized(small, 320, 320))
    blue = [colours(heat_map(result, small))[1].clip(0).mean() for result in (plain, whole)]
    assert blue[0] < blue[1] / 2


def test_alpha_and_odd_sizes() -> None:
    rng = generator()
    for _ in range(20):
        height, width, tall, wide = (int(side) for side in rng.integers(1, 30, 4))
        channels = int(rng.integers(3, 5))
        map_ = heat_map(noise(tall, wide, channels), noise(height, width, channels))
        assert map_.shape == (height, width, 3)
