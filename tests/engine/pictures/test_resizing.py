import random

import numpy as np

from engine.pictures.resizing import enlarged_rows, resized
from tests.helpers.pictures import generator


def test_smaller_pictures_are_means_and_equal_ones_are_the_same() -> None:
    height, width, factor = (random.randint(1, 12) for _ in range(3))
    picture = generator().random((height * factor, width * factor, 3), np.float32)
    means = picture.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resized(picture, height, width), means, atol=1e-5)
    assert resized(picture, height * factor, width * factor) is picture


def test_bands_of_an_enlarged_picture_make_the_whole() -> None:
    height, width = random.randint(2, 20), random.randint(2, 20)
    large = height * random.randint(1, 5), width * random.randint(1, 5)
    picture = generator().random((height, width, 3), np.float32)
    parts = [slice(top, min(top + 7, large[0])) for top in range(0, large[0], 7)]
    whole = np.concatenate([enlarged_rows(picture, rows, *large) for rows in parts])
    # OpenCV's warp rounds places to a 32nd of a pixel.
    np.testing.assert_allclose(whole, resized(picture, *large), atol=0.07)
