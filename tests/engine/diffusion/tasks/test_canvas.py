import random

import numpy as np
import pytest

from engine.contract.draw import Outpaint
from engine.diffusion.tasks import canvas
from engine.pictures.arrays import Bytes

SEED = random.randrange(1 << 30)


def rgb(height: int, width: int, channels: int = 3) -> Bytes:
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_padding_repeats_the_right_and_bottom_edge() -> None:
    image = rgb(5, 7)
    padded = canvas.pad_to(image, 16, 8)
    assert padded.shape == (8, 16, 3)
    assert np.array_equal(padded[:5, :7], image)
    assert (padded[:5, 7:] == image[:, -1:]).all() and (padded[5:, :7] == image[-1:]).all()
    assert canvas.pad_to(image, 7, 5) is image
    assert canvas.pad_to(image[..., 0], 8, 8).shape == (8, 8)


def test_the_original_lies_on_the_canvas_where_the_sides_say() -> None:
    image, sides = rgb(5, 7, 4), Outpaint(left=3, right=1, top=2, bottom=9)
    extended = canvas.extend_image(image, sides)
    assert extended.shape == (16, 11, 4)
    assert np.array_equal(extended[2:7, 3:10], image)
    new = canvas.new_area(7, 5, sides)
    assert new.shape == (16, 11)
    assert not new[2:7, 3:10].any() and new.sum() == 16 * 11 - 35
    assert (extended[2:7, :3] == image[:, :1]).all(), "new pixels repeat the edge, alpha too"
    assert np.array_equal(canvas.extend_mask(image[..., 0], sides)[2:7, 3:10], image[..., 0])
    assert not canvas.extend_mask(image[..., 0], sides)[new].any()


def test_the_fill_takes_its_colours_from_the_original_and_leaves_it_alone() -> None:
    image, sides = rgb(33, 47), Outpaint(left=20, right=5, top=0, bottom=70)
    extended, new = canvas.extend_image(image, sides), canvas.new_area(47, 33, sides)
    filled = canvas.fill_new(extended, new)
    assert np.array_equal(filled[~new], image.reshape(-1, 3))
    assert filled[new].min() >= image.min() and filled[new].max() <= image.max()
    flat = np.full((9, 9, 3), (10, 200, 90), np.uint8)
    extended, new = canvas.extend_image(flat, sides), canvas.new_area(9, 9, sides)
    assert (np.abs(canvas.fill_new(extended, new).astype(int) - (10, 200, 90)) <= 1).all()


def test_the_fill_continues_the_edge_and_is_smooth() -> None:
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.arange(64)[:, None] * 4
    sides = Outpaint(right=64)
    extended, new = canvas.extend_image(ramp, sides), canvas.new_area(64, 64, sides)
    filled = canvas.fill_new(extended, new).astype(int)
    seam = np.abs(filled[4:-4, 64] - filled[4:-4, 63])
    assert seam.max() <= 12, "at the edge the fill has the edge's colours"
    assert np.abs(np.diff(filled[:, 64:], axis=1)).max() <= 12
    far = filled[:, -1, 0]
    assert far.max() - far.min() < 160, "far away the colours come nearer to the mean"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 1)])
def test_the_smallest_images_can_grow(size: tuple[int, int]) -> None:
    image, sides = rgb(*size), Outpaint(left=2, right=300, top=1, bottom=0)
    new = canvas.new_area(size[1], size[0], sides)
    filled = canvas.fill_new(canvas.extend_image(image, sides), new)
    assert filled.shape == (*new.shape, 3)
    assert np.array_equal(filled[~new], image.reshape(-1, 3))
