"""Finds the surroundings of a mask, which are then drawn at the size that the model draws best."""

import math
from dataclasses import dataclass

from engine.diffusion.families.family import FamilyFacts
from engine.diffusion.tasks.mask import bounding_box
from engine.pictures.arrays import Bools


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def window(self) -> tuple[slice, slice]:
        """The rectangle as an index of an array `[H, W, ...]`."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def region_of_mask(mask: Bools, padding: int, ratio: float) -> Region:
    """The mask's bounding box with `padding` px around it, widened to `ratio` (width by height).

    It stays within the image; if the image is too small for the ratio, it is as near as possible.
    """
    height, width = mask.shape
    left, top, right, bottom = bounding_box(mask)
    left, right = max(0, left - padding), min(width, right + padding)
    top, bottom = max(0, top - padding), min(height, bottom + padding)
    wanted_width = max(right - left, round((bottom - top) * ratio))
    wanted_height = max(bottom - top, round((right - left) / ratio))
    left, right = _widened(left, right, wanted_width, width)
    top, bottom = _widened(top, bottom, wanted_height, height)
    return Region(left, top, right, bottom)


def working_size(region: Region, facts: FamilyFacts) -> tuple[int, int]:
    """The (width, height) at which a region is drawn: the model's own size if the ratio fits.

    Otherwise it has as many pixels in the region's ratio, with sides that are multiples of the
    model's.
    """
    default = (facts.default_width, facts.default_height)
    area = default[0] * default[1]
    scale = math.sqrt(area / (region.width * region.height))
    exact = (region.width * scale, region.height * scale)
    multiple = facts.size_multiple
    if all(abs(a - b) < multiple for a, b in zip(exact, default, strict=True)):
        return default
    smallest = math.ceil(facts.min_side / multiple) * multiple
    width, height = (max(smallest, round(side / multiple) * multiple) for side in exact)
    # If it were rounded up or held at the smallest side, a long strip would exceed the area.
    if width >= height:
        width = max(smallest, min(width, area // height // multiple * multiple))
    else:
        height = max(smallest, min(height, area // width // multiple * multiple))
    return width, height


def _widened(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """A span of `wanted` length around this one, moved to lie within [0, limit)."""
    wanted = min(wanted, limit)
    start = start - (wanted - (end - start)) // 2
    start = min(max(0, start), limit - wanted)
    return start, start + wanted
