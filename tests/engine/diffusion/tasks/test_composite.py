import random
from fractions import Fraction

import numpy as np

from engine.diffusion.tasks.composite import composite

SEED = random.randrange(1 << 30)


def test_weights_of_nothing_and_of_everything_are_exact() -> None:
    rng = np.random.default_rng(SEED)
    for channels in (3, 4):
        base = rng.integers(0, 256, (17, 23, channels), dtype=np.uint8)
        picture = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8)
        weights = rng.choice([0, 255], (17, 23)).astype(np.uint8)
        result = composite(base, picture, weights)
        assert np.array_equal(result[weights == 0], base[weights == 0]), SEED
        assert np.array_equal(result[weights == 255][:, :3], picture[weights == 255]), SEED
        if channels == 4:
            assert (result[weights == 255][:, 3] == 255).all(), SEED


def test_mixtures_are_rounded_once() -> None:
    rng = np.random.default_rng(SEED)
    base = rng.integers(0, 256, (300, 1, 4), dtype=np.uint8)
    picture = rng.integers(0, 256, (300, 1, 3), dtype=np.uint8)
    weights = rng.integers(1, 255, (300, 1), dtype=np.uint8)
    rgba, rgb = composite(base, picture, weights), composite(base[..., :3], picture, weights)
    for i in range(300):
        w, alpha = Fraction(int(weights[i, 0]), 255), Fraction(int(base[i, 0, 3]), 255)
        cover = w + alpha * (1 - w)
        assert abs(rgba[i, 0, 3] - 255 * cover) <= Fraction(1, 2), SEED
        for c in range(3):
            old, new = int(base[i, 0, c]), int(picture[i, 0, c])
            assert abs(int(rgb[i, 0, c]) - (new * w + old * (1 - w))) <= Fraction(1, 2), SEED
            straight = (new * w + old * alpha * (1 - w)) / cover
            assert abs(int(rgba[i, 0, c]) - straight) <= Fraction(1, 2), SEED


def test_colour_hidden_under_transparency_does_not_show() -> None:
    base = np.array([[[255, 0, 255, 0]]], np.uint8)
    picture = np.array([[[10, 20, 30]]], np.uint8)
    mixed = composite(base, picture, np.array([[100]], np.uint8))
    assert mixed.tolist() == [[[10, 20, 30, 100]]]


def test_the_base_is_left_alone() -> None:
    base = np.zeros((2, 2, 3), np.uint8)
    composite(base, base + 9, np.full((2, 2), 255, np.uint8))
    assert not base.any()


def test_the_smallest_weight_is_seen() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert composite(black, white, np.array([[1]], np.uint8)).tolist() == [[[1, 1, 1]]]
