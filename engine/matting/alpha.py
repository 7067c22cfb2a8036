"""Estimates alpha from a picture and its trimap within limits of memory and time."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from engine.matting import guided
from engine.matting.conjugate_gradients import solve
from engine.matting.systems import LEAST_SIDE, band_system
from engine.matting.trimap import Trimap
from engine.pictures.arrays import Bytes, Floats, scaled_size
from engine.pictures.resizing import resized

MAX_UNKNOWNS = 250_000
"""The most pixels to solve for, at nearly two kilobytes each. Above, alpha is solved for a smaller
picture and enlarged along the large picture's edges (`guided.py`)."""
NOT_CONVERGED = (
    "alpha did not reach full precision within the allowed number of steps; the colours of subject "
    "and background may be too alike"
)


@dataclass(frozen=True, slots=True)
class Matte:
    """Alpha [H, W] from 0 to 1, and the size of the picture for which it was solved."""

    alpha: Floats
    width: int
    height: int
    is_converged: bool = True


def estimate_alpha(image: Bytes, trimap: Trimap) -> Generator[None, None, Matte]:
    """Estimate the alpha of a picture [H, W, 3]. Pauses so that others can have their turn, which
    does not change the result."""
    height, width = trimap.is_unknown.shape
    if not trimap.num_unknown:
        return Matte(trimap.is_subject.astype(np.float32), width, height)
    small_trimap = _within_bounds(trimap)
    low = small_trimap.is_unknown.shape
    small = resized(image, *low)
    alpha, is_converged = yield from _solved(small, small_trimap)
    if low != (height, width):
        alpha = yield from guided.upsample(small, alpha, image, trimap)
    return Matte(alpha, low[1], low[0], is_converged)


def _within_bounds(trimap: Trimap) -> Trimap:
    """The trimap, reduced as far as necessary. Reducing can leave more open pixels than expected if
    they are scattered, so one try may not be enough."""
    height, width = trimap.is_unknown.shape
    scale, small = 1.0, trimap
    while (excess := small.num_unknown / MAX_UNKNOWNS) > 1.0:
        scale *= 0.97 / math.sqrt(excess)
        small = trimap.scaled(*scaled_size(height, width, scale))
    return small


def _solved(image: Bytes, trimap: Trimap) -> Generator[None, None, tuple[Floats, bool]]:
    """Alpha at exactly this size."""
    alpha = trimap.is_subject.astype(np.float32)
    if not trimap.num_unknown:
        return alpha, True
    height, width = alpha.shape
    padding = [(0, max(0, LEAST_SIDE - side)) for side in (height, width)]
    padded = Trimap(
        np.pad(trimap.is_subject, padding, mode="edge"),
        np.pad(trimap.is_unknown, padding, mode="edge"),
    )
    picture = np.pad(image, [*padding, (0, 0)], mode="edge")
    matrix, rhs, precondition = yield from band_system(picture, padded)
    x, is_converged = yield from solve(matrix, rhs, precondition)
    solved = padded.is_subject.astype(np.float32)
    solved[padded.is_unknown] = x.clip(0.0, 1.0)
    return solved[:height, :width], is_converged
