import random

import numpy as np
import pytest
import torch

from engine.contract.pixels import Pixels
from engine.diffusion.tasks.pixels import (
    array_to_tensor,
    flatten,
    from_array,
    from_tensor,
    to_array,
)
from engine.errors import InvalidParameter

SEED = random.randrange(1 << 30)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 65)])
def test_bytes_survive_the_way_to_tensors_and_back(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(SEED).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = from_array(rgb)
    assert (pixels.height, pixels.width, pixels.channels) == (*size, 3)
    tensor = array_to_tensor(to_array(pixels))
    assert tensor.shape == (1, 3, *size) and tensor.dtype == torch.float32
    assert from_tensor(tensor[0]) == pixels, SEED


def test_the_ends_of_the_range() -> None:
    tensor = array_to_tensor(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    assert tensor.amin() == -1 and tensor.amax() == 1
    wild = torch.tensor([-7.0, -1.0, 1.0, 7.0]).reshape(1, 1, 4).expand(3, 1, 4)
    assert from_tensor(wild).data == bytes([0] * 6 + [255] * 6)


def test_transparency_is_seen_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert flatten(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    grey = np.array([[[9]]], np.uint8)
    assert flatten(grey).tolist() == [[[9, 9, 9]]]


@pytest.mark.parametrize(("width", "height", "length"), [(0, 4, 0), (2, 2, 11), (2, 2, 13)])
def test_pixels_that_are_not_what_they_say(width: int, height: int, length: int) -> None:
    with pytest.raises(InvalidParameter) as caught:
        to_array(Pixels(width=width, height=height, channels=3, data=bytes(length)), param="mask")
    assert caught.value.param == "mask"
