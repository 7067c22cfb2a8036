"""The subject's own colours where it mixes with its background: `estimate_foreground`.

Multi-level estimation (Germer et al. 2020, "Fast Multi-Level Foreground Estimation"), by pymatting.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from engine.matting.arrays import Bytes, Floats, scaled_size, strips, unit
from engine.matting.pymatting_library import pymatting
from engine.matting.resampling import enlarged_rows, shrink
from engine.matting.systems import surroundings

MAX_PIXELS = 2_000_000
"""Of the picture that colours are estimated at. Those of a larger one are made of it, pixel by
pixel, so that `I = alpha F + (1 - alpha) B` holds as nearly as it can."""
MARGIN = 16
"""Pixels around the subject that get its colours, too: whoever scales the cut-out without regard to
alpha finds no others there. All beyond is black."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """Colours [H, W, 3], and the size of the picture that they were estimated at."""

    colours: Bytes
    width: int
    height: int


def estimate_foreground(image: Bytes, alpha: Floats) -> Generator[None, None, Foreground]:
    """Of a picture [H, W, 3] and its alpha [H, W]. Pauses where others may have their turn."""
    colours = np.zeros_like(image)
    if not alpha.any():
        return Foreground(colours, 0, 0)
    area = surroundings(alpha > 0, MARGIN)
    part, part_alpha = image[area], alpha[area]
    height, width = part_alpha.shape
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / part_alpha.size))
    small = unit(np.ascontiguousarray(shrink(part, *low)))
    small_alpha = np.ascontiguousarray(shrink(part_alpha, *low))
    # It goes from one pixel to more, so there must be more.
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
        for rows in strips(height, width):
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


def _consistent(image: Floats, alpha: Floats, front: Floats, back: Floats) -> Floats:
    """Of all pairs of colours that mix to the picture's, the one nearest to (front, back)."""
    rest = image - alpha * front - (1 - alpha) * back
    return np.asarray(front + alpha * rest / (alpha * alpha + (1 - alpha) * (1 - alpha)))


def _bytes(colours: Floats) -> Bytes:
    return np.asarray(np.rint(colours.clip(0.0, 1.0) * 255), np.uint8)
