"""Masks against plain formulas."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from engine.contract.pixels import Pixels
from engine.diffusion.tasks.mask import (
    bounding_box,
    latent_mask,
    mask_levels,
    paste_weights,
)
from engine.errors import InvalidParameter

SEED = random.randrange(1 << 30)


def grey(levels: Any) -> Pixels:
    array = np.asarray(levels, np.uint8)
    height, width = array.shape
    return Pixels(width=width, height=height, channels=1, data=array.tobytes())


def image(width: int, height: int) -> Pixels:
    return Pixels(width=width, height=height, channels=3, data=bytes(3 * width * height))


def blobs(rng: np.random.Generator, height: int, width: int) -> Any:
    """Random rectangles, strokes and specks; at times touching the border."""
    mask = np.zeros((height, width), np.bool_)
    for _ in range(rng.integers(1, 5)):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
    return mask


def test_hard_masks_are_cut_at_one_half_and_soft_ones_kept() -> None:
    levels = [[0, 1, 127], [128, 200, 255]]
    hard = mask_levels(grey(levels), image(3, 2), soft=False)
    assert hard.tolist() == [[0, 0, 0], [255, 255, 255]]
    assert mask_levels(grey(levels), image(3, 2), soft=True).tolist() == levels


def test_a_mask_of_another_size_or_kind_is_refused() -> None:
    for size in ((2, 3), (4, 2), (3, 1)):
        with pytest.raises(InvalidParameter, match="3x2") as caught:
            mask_levels(grey([[0, 0, 9]] * 2), image(*size), soft=True)
        assert caught.value.param == "mask"
    with pytest.raises(InvalidParameter, match="3 channels"):
        mask_levels(image(3, 2), image(3, 2), soft=True)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_a_latent_cell_is_marked_by_any_of_its_pixels(factor: int) -> None:
    rng = np.random.default_rng(SEED)
    pixels = rng.random((3 * factor, 5 * factor)) * (rng.random((3 * factor, 5 * factor)) < 0.05)
    cells = latent_mask(torch.tensor(pixels)[None, None], factor)
    assert cells.shape == (1, 1, 3, 5)
    for y in range(3):
        for x in range(5):
            window = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert cells[0, 0, y, x] == window.max(), SEED


def test_weights_are_zero_outside_and_full_deep_inside() -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(60):
        mask = blobs(rng, int(rng.integers(1, 70)), int(rng.integers(1, 70)))
        feather = int(rng.integers(0, 12))
        weights = paste_weights(mask, feather)
        assert (weights[~mask] == 0).all(), SEED
        deep = mask
        if not mask.all():
            deep = ndimage.distance_transform_edt(mask) >= feather + 1
        assert (weights[deep] == 255).all(), SEED
        if feather == 0:
            assert (weights[mask] == 255).all(), SEED


def test_wide_masks_fade_by_a_cosine_of_the_distance() -> None:
    mask = np.zeros((80, 90), np.bool_)
    mask[20:60, 15:70] = True
    feather = 7
    share = np.minimum(ndimage.distance_transform_edt(mask) / (feather + 1), 1)
    expected = 255 * (1 - np.cos(np.pi * share)) / 2
    assert np.abs(paste_weights(mask, feather) - expected).max() <= 0.501


def test_the_border_of_the_image_is_no_edge() -> None:
    mask = np.zeros((30, 30), np.bool_)
    mask[:, 20:] = True
    weights = paste_weights(mask, 4)
    assert (weights == weights[0]).all()
    assert (weights[:, 25:] == 255).all()


@pytest.mark.parametrize("thickness", [1, 2, 3, 5])
def test_thin_strokes_still_get_full_weight(thickness: int) -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10 : 10 + thickness] = True
    weights = paste_weights(mask, 6)
    assert (weights[10 + thickness // 2] == 255).all()
    mask = np.zeros((40, 40), np.bool_)
    mask[20, 20] = True
    assert paste_weights(mask, 6)[20, 20] == 255


@pytest.mark.parametrize("redrawn", [False, True])
def test_all_or_nothing_has_no_edge(redrawn: bool) -> None:
    assert (paste_weights(np.full((8, 9), redrawn), 4) == 255 * redrawn).all()


def test_the_bounding_box() -> None:
    mask = np.zeros((9, 12), np.bool_)
    mask[3, 4] = mask[7, 10] = True
    assert bounding_box(mask) == (4, 3, 11, 8)
    assert bounding_box(np.ones((1, 1), np.bool_)) == (0, 0, 1, 1)
