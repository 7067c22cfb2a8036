"""Colours around a mask, continued under it."""

import numpy as np
import pytest
import torch

from engine.diffusion.tasks.seam import match_colours, trust_levels
from engine.pictures.arrays import Bytes

FACTOR = 8


def cells(height: int = 12, width: int = 14) -> torch.Tensor:
    redrawn = torch.zeros((1, 1, height, width))
    redrawn[..., 4:8, 5:9] = 1.0
    return redrawn


def under(mask: torch.Tensor) -> np.ndarray:
    return np.kron(mask[0, 0].numpy(), np.ones((FACTOR, FACTOR))) > 0


def scene(height: int = 96, width: int = 112) -> Bytes:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([60 + x, 200 - y, 90 + (x + y) // 4], axis=-1).astype(np.uint8)


def test_redrawn_cells_are_not_trusted_and_their_neighbours_less() -> None:
    trust = trust_levels(cells(), FACTOR)
    assert trust.shape == (96, 112)
    assert (trust[under(cells())] == 0).all()
    assert 0 < trust[3 * FACTOR, 5 * FACTOR] < 64
    assert (trust[: 2 * FACTOR] == 255).all()


def test_soft_levels_are_redrawn_too() -> None:
    soft = torch.zeros((1, 1, 3, 3))
    soft[..., 1, 1] = 0.01
    assert trust_levels(soft, FACTOR)[FACTOR, FACTOR] == 0


def test_what_shows_the_input_exactly_is_left_as_it_was_drawn() -> None:
    seen, mask = scene(), under(cells())
    drawn = np.where(mask[..., None], 7, seen).astype(np.uint8)
    assert np.array_equal(match_colours(drawn, seen, trust_levels(cells(), FACTOR)), drawn)


@pytest.mark.parametrize("tint", [(-12, 0, 5), (30, 20, -25)])
def test_a_constant_tint_is_removed_whatever_was_drawn(tint: tuple[int, int, int]) -> None:
    seen, mask = scene(), under(cells())
    new = np.where(mask[..., None], (120, 90, 100), seen)
    moved = match_colours((new + tint).astype(np.uint8), seen, trust_levels(cells(), FACTOR))
    assert np.abs(moved.astype(int) - new)[mask].max() <= 1


def test_a_tint_that_differs_from_side_to_side_is_followed() -> None:
    seen, mask = scene(), under(cells())
    tint = np.linspace(-20, 20, seen.shape[1])[None, :, None]
    moved = match_colours((seen + tint).astype(np.uint8), seen, trust_levels(cells(), FACTOR))
    left, right = mask.copy(), mask.copy()
    left[:, 5 * FACTOR + 4 :] = False
    right[:, : 9 * FACTOR - 4] = False
    error = moved.astype(float) - seen
    for edge in (left, right):
        assert abs(error[edge].mean()) < 4, "of 5 to 8 levels before"


def test_neighbouring_cells_do_not_carry_new_content_into_the_colours() -> None:
    """A decoder lets what is new shine into the cells beside it."""
    seen, redrawn = scene(), cells()
    beside = (trust_levels(redrawn, FACTOR) % 255) > 0
    drawn = np.where(beside[..., None], 255, seen).astype(np.uint8)
    moved = match_colours(drawn, seen, trust_levels(redrawn, FACTOR))
    shift = (moved.astype(int) - drawn)[under(redrawn)]
    assert np.abs(shift).mean() < 40, "of more than a hundred levels beside it"


def test_without_anything_kept_nothing_is_moved() -> None:
    drawn, seen = scene(), scene() // 2
    trust = trust_levels(torch.ones((1, 1, 12, 14)), FACTOR)
    assert np.array_equal(match_colours(drawn, seen, trust), drawn)
