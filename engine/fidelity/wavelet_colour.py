"""Restores the input's colours in a result that has drifted from them, by exchanging low bands.

As in StableSR (Wang et al. 2023, arXiv:2305.07015) and SUPIR (Yu et al. 2024, arXiv:2401.13627):
an à-trous wavelet with five levels splits both pictures; the answer has the result's detail and the
enlarged lowest band of the input. As the wavelet is linear, that is the result plus the lowest band
of the difference.
"""

import numpy as np

from engine.pictures.alpha import premultiplied, straight
from engine.pictures.arrays import Bytes, Floats, bands
from engine.pictures.resampling import Resampling

NUM_LEVELS = 5
REACH = 2**NUM_LEVELS - 1
"""The distance in pixels up to which other pixels affect a pixel's lowest band."""


def wavelet_colour(result: Bytes, original: Bytes) -> Bytes:
    """The result in the original's colours, as a new array.

    Args:
        result, original: `[H, W, C]` and `[h, w, C]` of equal C.
    """
    height, width = result.shape[:2]
    enlarge = Resampling.between(original.shape[:2], (height, width))
    plain = premultiplied(original)
    corrected = np.empty_like(result)
    for rows in bands(height, width):
        around = slice(max(0, rows.start - REACH), min(height, rows.stop + REACH))
        planes = premultiplied(result[around])
        drift = lowest_band(enlarge.band(plain, around) - planes)
        own = slice(rows.start - around.start, rows.stop - around.start)
        corrected[rows] = straight(planes[own] + drift[own], result[rows])
    return corrected


def lowest_band(planes: Floats) -> Floats:
    """The rest of `[H, W, C]` after all levels; each level repeats edge pixels outwards."""
    for level in range(NUM_LEVELS):
        for axis in (0, 1):
            planes = _blurred(planes, 2**level, axis)
    return planes


def _blurred(planes: Floats, distance: int, axis: int) -> Floats:
    """A quarter of each neighbour at that distance, and half of the pixel itself."""
    padding = [(0, 0)] * 3
    padding[axis] = (distance, distance)
    padded = np.moveaxis(np.pad(planes, padding, mode="edge"), axis, 0)
    size = planes.shape[axis]
    neighbours = padded[:size] + padded[2 * distance :]
    blurred = np.moveaxis(neighbours, 0, axis) / 4 + planes / 2
    return blurred.astype(np.float32, copy=False)
