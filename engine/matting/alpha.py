"""Estimates alpha from a picture and its trimap within limits of memory and time."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from engine.contract.matte import MattingMethod
from engine.matting import guided
from engine.matting.arrays import Bytes, Floats, scaled_size
from engine.matting.conjugate_gradients import solve
from engine.matting.resampling import shrink
from engine.matting.systems import KNN_MARGIN, LEAST_SIDE, band_system, surroundings
from engine.matting.trimap import Trimap

MAX_UNKNOWNS = 250_000
"""The most pixels to solve for, at nearly two kilobytes each. Above, alpha is solved for a smaller
picture and enlarged along the large picture's edges (`guided.py`)."""
MAX_KNN_PIXELS = 150_000
"""The most pixels around the band, all of which KNN matting pairs with thirty others."""
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


def estimate_alpha(
    image: Bytes, trimap: Trimap, method: MattingMethod = MattingMethod.CLOSED_FORM
) -> Generator[None, None, Matte]:
    """Estimate the alpha of a picture [H, W, 3]. Pauses so that others can have their turn, which
    does not change the result."""
    height, width = trimap.is_unknown.shape
    if not trimap.num_unknown:
        return Matte(trimap.is_subject.astype(np.float32), width, height)
    small_trimap = _within_bounds(trimap, method)
    low = small_trimap.is_unknown.shape
    small = shrink(image, *low)
    alpha, is_converged = yield from _solved(small, small_trimap, method)
    if low != (height, width):
        alpha = yield from guided.upsample(small, alpha, image, trimap)
    return Matte(alpha, low[1], low[0], is_converged)


def _within_bounds(trimap: Trimap, method: MattingMethod) -> Trimap:
    """The trimap, reduced as far as necessary. Reducing can leave more open pixels than expected if
    they are scattered, so one try may not be enough."""
    height, width = trimap.is_unknown.shape
    scale, small = 1.0, trimap
    while (excess := _excess(small, method)) > 1.0:
        scale *= 0.97 / math.sqrt(excess)
        small = trimap.scaled(*scaled_size(height, width, scale))
    return small


def _excess(trimap: Trimap, method: MattingMethod) -> float:
    """The trimap's size as a multiple of the limit."""
    if method is not MattingMethod.KNN or not trimap.num_unknown:
        return trimap.num_unknown / MAX_UNKNOWNS
    area = surroundings(trimap.is_unknown, KNN_MARGIN)
    return trimap.is_unknown[area].size / MAX_KNN_PIXELS


def _solved(
    image: Bytes, trimap: Trimap, method: MattingMethod
) -> Generator[None, None, tuple[Floats, bool]]:
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
    system = yield from band_system(picture, padded, method)
    x, is_converged = yield from solve(system.matrix, system.rhs, system.precondition)
    solved = padded.is_subject.astype(np.float32)
    solved[padded.is_unknown] = x[system.places].clip(0.0, 1.0)
    return solved[:height, :width], is_converged
