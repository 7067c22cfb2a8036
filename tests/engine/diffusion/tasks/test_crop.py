import random
from dataclasses import replace

import numpy as np
import pytest

from engine.diffusion.families.family import FamilyFacts
from engine.diffusion.tasks.crop import Region, region_of_mask, working_size
from tests.helpers.diffusion.toy_family import ToyFamily

SEED = random.randrange(1 << 30)


def facts(width: int = 512, height: int = 512, multiple: int = 8) -> FamilyFacts:
    sides = {"default_width": width, "default_height": height, "min_side": 64}
    return replace(ToyFamily().facts, vae_factor=8, size_multiple=multiple, **sides)


def spot(height: int, width: int, *corners: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    left, top, right, bottom = corners
    mask[top:bottom, left:right] = True
    return mask


def test_a_region_has_room_for_padding_and_the_ratio() -> None:
    mask = spot(1000, 1000, 400, 500, 440, 510)
    assert region_of_mask(mask, 30, 1.0) == Region(370, 455, 470, 555)
    wide = region_of_mask(mask, 30, 2.0)
    assert (wide.width, wide.height) == (140, 70)


def test_a_region_stays_inside_the_image() -> None:
    assert region_of_mask(spot(90, 200, 0, 0, 10, 10), 20, 1.0) == Region(0, 0, 30, 30)
    corner = region_of_mask(spot(90, 200, 195, 88, 200, 90), 10, 1.0)
    assert (corner.right, corner.bottom) == (200, 90) and corner.width == corner.height == 15
    whole = region_of_mask(np.ones((90, 200), np.bool_), 10, 1.0)
    assert whole == Region(0, 0, 200, 90), "the ratio cannot be had"


def test_random_regions_hold_their_masks() -> None:
    rng = np.random.default_rng(SEED)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        mask = rng.random((height, width)) < rng.random() * 0.02
        mask[rng.integers(height), rng.integers(width)] = True
        ratio = float(rng.choice([0.3, 1.0, 1.5]))
        region = region_of_mask(mask, int(rng.integers(0, 40)), ratio)
        assert 0 <= region.left < region.right <= width, SEED
        assert 0 <= region.top < region.bottom <= height, SEED
        assert mask[region.window].sum() == mask.sum(), SEED
        shorter = min(region.width, region.height)
        fits_ratio = abs(region.width / region.height / ratio - 1) < 2 / shorter
        assert fits_ratio or region.width == width or region.height == height, SEED


@pytest.mark.parametrize("default", [(512, 512), (768, 512), (64, 64)])
def test_a_region_of_the_models_ratio_is_drawn_at_the_models_size(default):
    mask = spot(2000, 2000, 900, 900, 950, 931)
    region = region_of_mask(mask, 32, default[0] / default[1])
    assert working_size(region, facts(*default)) == default


def test_any_other_region_gets_as_many_pixels_on_the_grid() -> None:
    rng = np.random.default_rng(SEED)
    known = facts(multiple=16)
    for _ in range(300):
        width, height = (int(side) for side in 2 ** rng.uniform(0, 12, 2))
        size = working_size(Region(3, 5, 3 + width, 5 + height), known)
        assert all(side % 16 == 0 and side >= 64 for side in size), (SEED, width, height)
        assert size[0] * size[1] <= 512 * 512, (SEED, width, height)
        if 1 / 3 < width / height < 3:
            assert size[0] * size[1] > 0.85 * 512 * 512, (SEED, width, height)
            assert abs(np.log(size[0] / size[1] / (width / height))) < 0.1, (SEED, width, height)
