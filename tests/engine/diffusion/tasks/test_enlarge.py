"""What a first pass has drawn, larger."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from engine.contract.draw import Enlarging
from engine.diffusion.tasks.enlarge import enlarge_latents, enlarge_picture
from engine.pictures.arrays import array_of, pixels_of

OF_LATENTS = [how for how in Enlarging if how.is_of_latents]
OF_PICTURES = [how for how in Enlarging if not how.is_of_latents]


def drawn(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(random.randrange(1 << 31))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("how", OF_LATENTS)
def test_latents_have_the_new_size_and_what_they_had(how: Enlarging) -> None:
    latents = torch.randn(1, 4, 6, 5)
    for width, height in ((5, 6), (10, 12), (7, 9), (20, 7), (6, 30)):
        larger = enlarge_latents(latents, width, height, how)
        assert larger.shape == (1, 4, height, width)
        flat = enlarge_latents(torch.full_like(latents, 0.5), width, height, how)
        torch.testing.assert_close(flat, torch.full((1, 4, height, width), 0.5))
    same = enlarge_latents(latents, 5, 6, how)
    torch.testing.assert_close(same, latents)
    strip = enlarge_latents(torch.randn(1, 4, 4, 4096), 4, 4096, how)
    assert strip.shape == (1, 4, 4096, 4), "and not 4096 times as much on the way"
    rows = torch.arange(6.0)[None, None, :, None].expand(1, 4, 6, 5)
    rising = enlarge_latents(rows, 10, 12, how)
    assert (rising.diff(dim=2) >= -1e-5).all() and rising.std(dim=3).max() < 1e-5


@pytest.mark.parametrize("how", OF_PICTURES)
def test_pictures_are_resized_as_pillow_does(how: Enlarging) -> None:
    picture = drawn(10, 6)
    method = Image.Resampling[how.name]
    for width, height in ((10, 6), (20, 12), (25, 15)):
        larger = array_of(enlarge_picture(pixels_of(picture), width, height, how))
        theirs = np.asarray(Image.fromarray(picture).resize((width, height), method))
        assert (larger == theirs).all()


@pytest.mark.parametrize("how", [Enlarging.LATENT_NEAREST, Enlarging.NEAREST])
def test_of_another_shape_the_middle_is_kept(how: Enlarging) -> None:
    picture = drawn(4, 4)
    for width, height in ((8, 4), (4, 8), (16, 8)):
        blocks = max(width, height) // 4
        whole = picture.repeat(blocks, 0).repeat(blocks, 1)
        left, top = (whole.shape[1] - width) // 2, (whole.shape[0] - height) // 2
        expected = whole[top : top + height, left : left + width]
        if how.is_of_latents:
            planes = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()
            found = enlarge_latents(planes, width, height, how)[0].permute(1, 2, 0).numpy()
        else:
            found = array_of(enlarge_picture(pixels_of(picture), width, height, how))
        assert (found == expected).all()
