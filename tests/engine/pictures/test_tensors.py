import random

import numpy as np
import pytest
import torch
from PIL import Image

from engine.pictures.arrays import array_of
from engine.pictures.tensors import as_bytes, as_tensor, from_signed, resampled, straight, to_signed
from tests.helpers.pictures import noise


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 65)])
def test_bytes_survive_the_way_to_tensors_and_back(size: tuple[int, int]) -> None:
    rgba = noise(*size, 4)
    planes = as_tensor(rgba)
    assert planes.shape == (4, *size) and planes.dtype == torch.float32
    assert np.array_equal(as_bytes(planes), rgba)
    assert torch.equal(as_tensor(rgba[..., 1]), planes[1:2])
    rgb = rgba[..., :3]
    signed = to_signed(rgb)
    assert signed.shape == (1, 3, *size) and signed.dtype == torch.float32
    assert np.array_equal(array_of(from_signed(signed[0])), rgb)


def test_the_ends_of_the_range() -> None:
    signed = to_signed(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    assert signed.amin() == -1 and signed.amax() == 1
    wild = torch.tensor([-7.0, -1.0, 1.0, 7.0]).reshape(1, 1, 4).expand(3, 1, 4)
    assert from_signed(wild).data == bytes([0] * 6 + [255] * 6)


def test_colours_are_divided_by_alpha() -> None:
    colours, alpha = torch.rand(3, 20, 20), torch.rand(1, 20, 20) * 0.9 + 0.1
    torch.testing.assert_close(straight(colours * alpha, alpha), colours)
    assert straight(colours, torch.zeros_like(alpha)).isfinite().all()


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_pillow_resamples_in_the_same_way(kernel: str) -> None:
    for _ in range(20):
        height, width, to_height, to_width = (random.randint(1, 60) for _ in range(4))
        to_width = random.choice((1, to_width))
        plane = torch.rand(height, width)
        ours = resampled(plane[None, None], to_height, to_width, kernel)[0, 0]
        method = Image.Resampling[kernel.upper()]
        theirs = np.asarray(Image.fromarray(plane.numpy()).resize((to_width, to_height), method))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5)
