import random

import numpy as np
import pytest

from engine.diffusion.tasks.resize import resize_image, resize_mask

SEED = random.randrange(1 << 30)
SIZES = [
    ((5, 7), (3, 2)),
    ((3, 2), (9, 11)),
    ((1, 1), (4, 5)),
    ((40, 31), (1, 1)),
    ((8, 8), (8, 5)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("channels", [3, 4])
def test_flat_colours_stay_flat(
    before: tuple[int, int], after: tuple[int, int], channels: int
) -> None:
    colour = [200, 3, 77, 90][:channels]
    image = np.full((*before, channels), colour, np.uint8)
    resized = resize_image(image, after[1], after[0])
    assert resized.shape == (*after, channels)
    assert np.abs(resized.astype(int) - colour).max() <= 1


def test_an_equal_size_changes_no_byte() -> None:
    image = np.random.default_rng(SEED).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    assert resize_image(image, 7, 5) is image
    assert resize_mask(image[..., 0], 7, 5).tolist() == image[..., 0].tolist()


def test_colours_under_transparency_do_not_bleed() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = (255, 0, 0, 255)
    image[:, 32:] = (0, 255, 0, 0)
    for side in (16, 21, 100):
        resized = resize_image(image, side, side)
        visible = resized[..., 3] > 8
        assert resized[..., 0][visible].min() > 240, side
        assert resized[..., 1][visible].max() < 15, side
        assert resized[0, -1].tolist() == [0, 255, 0, 0], "what is invisible keeps its colour"


def test_no_pixel_of_a_mask_is_lost() -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(200):
        height, width = rng.integers(1, 50, 2)
        new_height, new_width = (int(side) for side in rng.integers(1, 50, 2))
        mask = np.zeros((height, width), np.uint8)
        y, x, level = rng.integers(height), rng.integers(width), rng.integers(1, 256)
        mask[y, x] = level
        resized = resize_mask(mask, new_width, new_height)
        assert resized.shape == (new_height, new_width), SEED
        assert resized.max() == level, SEED
        rows, columns = np.nonzero(resized)
        assert abs((rows.mean() + 0.5) / new_height - (y + 0.5) / height) <= 1 / min(
            height, new_height
        ), SEED
        assert abs((columns.mean() + 0.5) / new_width - (x + 0.5) / width) <= 1 / min(
            width, new_width
        ), SEED
