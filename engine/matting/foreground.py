"""Estimates the subject's own colours where it mixes with the background.

The method is pymatting's multi-level estimation (Germer et al. 2020, "Fast Multi-Level Foreground
Estimation").
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from engine.matting.pymatting_library import pymatting
from engine.pictures.arrays import Bools, Bytes, Floats, bands, scaled_size, unit
from engine.pictures.resizing import enlarged_rows, resized

MAX_PIXELS = 2_000_000
"""The most pixels of a picture at which colours are estimated. For a larger picture they are
derived from these, pixel by pixel, so that `I = alpha F + (1 - alpha) B` holds as nearly as
possible."""
MARGIN = 16
"""The width of a margin around the subject that also gets its colours, since scaling a cut-out
without regard to alpha mixes them in. Everything beyond is black."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """Colours [H, W, 3], and the size of the picture at which they were estimated."""

    colours: Bytes
    width: int
    height: int


def estimate_foreground(image: Bytes, alpha: Floats) -> Generator[None, None, Foreground]:
    """Estimate the foreground's colours from a picture [H, W, 3] and its alpha [H, W]. Pauses so
    that others can have their turn."""
    colours = np.zeros_like(image)
    if not alpha.any():
        return Foreground(colours, 0, 0)
    area = _surroundings(alpha > 0, MARGIN)
    part, part_alpha = image[area], alpha[area]
    height, width = part_alpha.shape
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / part_alpha.size))
    small = unit(np.ascontiguousarray(resized(part, *low)))
    small_alpha = np.ascontiguousarray(resized(part_alpha, *low))
    # The method starts from a single pixel and doubles, so the picture must have more than one.
    padding = [(0, max(0, 2 - side)) for side in low]
    padded = np.pad(small, [*padding, (0, 0)], mode="edge")
    both = pymatting("estimate_foreground_ml")(
        padded, np.pad(small_alpha, padding, mode="edge"), return_background=True
    )
    front, back = (np.ascontiguousarray(found[: low[0], : low[1]]) for found in both)
    yield
    if low == (height, width):
        colours[area] = _bytes(front)
    else:
        target = colours[area]
        for rows in bands(height, width):
            target[rows] = _bytes(
                _consistent(
                    unit(part[rows]),
                    part_alpha[rows][..., None],
                    enlarged_rows(front, rows, height, width),
                    enlarged_rows(back, rows, height, width),
                )
            )
            yield
    return Foreground(colours, low[1], low[0])


def _surroundings(region: Bools, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a region that is not empty, with a margin on each side."""
    sides = []
    for axis in (0, 1):
        inside = np.flatnonzero(region.any(axis=1 - axis))
        size = region.shape[axis]
        sides.append(slice(max(0, inside[0] - margin), min(size, inside[-1] + 1 + margin)))
    return sides[0], sides[1]


def _consistent(image: Floats, alpha: Floats, front: Floats, back: Floats) -> Floats:
    """The pair of colours nearest to (front, back) among those that mix to the picture's colour."""
    rest = image - alpha * front - (1 - alpha) * back
    return np.asarray(front + alpha * rest / (alpha * alpha + (1 - alpha) * (1 - alpha)))


def _bytes(colours: Floats) -> Bytes:
    return np.asarray(np.rint(colours.clip(0.0, 1.0) * 255), np.uint8)
