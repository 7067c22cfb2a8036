"""Rows to another size, compared with Pillow's bicubic filter on whole images."""

import random

import numpy as np
import torch
from PIL import Image

from engine.upscaling.resampling import RowResampler


def test_rows_that_come_in_any_pieces_give_pillows_image() -> None:
    for _ in range(20):
        given = (random.randrange(1, 60), random.randrange(1, 60))
        wanted = tuple(random.randrange(1, 2 * side + 1) for side in given)
        plane = torch.rand(1, given[1], given[0])
        resampler = RowResampler(given, (wanted[0], wanted[1]))
        made, at = [], 0
        while at < given[1]:
            step = random.randrange(1, 9)
            made.append(resampler.add(plane[:, at : at + step]))
            at += step
        found = torch.cat(made, 1)[0].numpy()
        image = Image.fromarray(plane[0].numpy())
        expected = np.asarray(image.resize((wanted[0], wanted[1]), Image.Resampling.BICUBIC))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_same_size_is_left_alone() -> None:
    rows = torch.rand(3, 4, 5)
    assert RowResampler((5, 8), (5, 8)).add(rows) is rows
