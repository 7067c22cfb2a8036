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
    small_trimap = _within_bounds(trimap, method)
    low = small_trimap.is_unknown.shape
    small = shrink(image, *low)
    alpha, is_converged = yield from _solved(small, small_trimap, method)
    if low != (height, width):
        alpha = yield from guided.upsample(small, alpha, image, trimap)
    return Matte(alpha, low[1], low[0], is_converged)


def _within_bounds(trimap: Trimap, method: MattingMethod) -> Trimap:
    """The trimap, or one as much smaller as it takes. A smaller one leaves more open than its share
    where open pixels are scattered, so that one try may not be enough."""
    height, width = trimap.is_unknown.shape
    scale, small = 1.0, trimap
    while (excess := _excess(small, method)) > 1.0:
        scale *= 0.97 / math.sqrt(excess)
        small = trimap.scaled(*scaled_size(height, width, scale))
    return small


def _excess(trimap: Trimap, method: MattingMethod) -> float:
    """How many times the bound it is."""
    if method is not MattingMethod.KNN or not trimap.num_unknown:
        return trimap.num_unknown / MAX_UNKNOWNS
    area = surroundings(trimap.is_unknown, KNN_MARGIN)
    return trimap.is_unknown[area].size / MAX_KNN_PIXELS


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
