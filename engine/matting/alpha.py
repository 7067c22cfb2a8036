"""Alpha from a picture and its trimap, within bounds of memory and time: `estimate_alpha`."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from engine.matting import guided
from engine.matting.arrays import Bytes, Floats, scaled_size
from engine.matting.conjugate_gradients import solve
from engine.matting.resampling import shrink
from engine.matting.systems import KNN_MARGIN, LEAST_SIDE, band_system, surroundings
from engine.matting.trimap import Trimap
from engine.matting_types import MattingMethod

MAX_UNKNOWNS = 250_000
"""Pixels that are solved for, at nearly two kilobytes each. Above, alpha is solved for a smaller
picture and brought to the large one by its edges (`guided.py`)."""
MAX_KNN_PIXELS = 150_000
"""Pixels of the band's surroundings, all of which KNN matting pairs with thirty others."""
NOT_CONVERGED = (
    "alpha was not found to full precision within the steps allowed: the colours of subject and "
    "background may be too alike there"
)


@dataclass(frozen=True, slots=True)
class Matte:
    """Alpha [H, W] from 0 to 1, and the size of the picture that it was solved at."""

    alpha: Floats
    width: int
    height: int
    is_converged: bool = True


def estimate_alpha(
    image: Bytes, trimap: Trimap, method: MattingMethod = MattingMethod.CLOSED_FORM
) -> Generator[None, None, Matte]:
    """Of a picture [H, W, 3]. Pauses where others may have their turn; what comes out is the same
    whether they do."""
    height, width = trimap.is_unknown.shape
    if not trimap.num_unknown:
        return Matte(trimap.is_subject.astype(np.float32), width, height)
    low = scaled_size(height, width, _scale(trimap, method))
    small, small_trimap = shrink(image, *low), trimap.scaled(*low)
    alpha, is_converged = yield from _solved(small, small_trimap, method)
    if low != (height, width):
        alpha = yield from guided.upsample(small, alpha, image, trimap)
    return Matte(alpha, low[1], low[0], is_converged)


def _scale(trimap: Trimap, method: MattingMethod) -> float:
    """How much smaller the picture must be to be within the bounds."""
    if method is not MattingMethod.KNN:
        return math.sqrt(MAX_UNKNOWNS / trimap.num_unknown)
    area = surroundings(trimap.is_unknown, KNN_MARGIN)
    return math.sqrt(MAX_KNN_PIXELS / trimap.is_unknown[area].size)


def _solved(
    image: Bytes, trimap: Trimap, method: MattingMethod
) -> Generator[None, None, tuple[Floats, bool]]:
    """Alpha at this very size."""
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
