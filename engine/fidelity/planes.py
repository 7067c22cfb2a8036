"""Pictures as bytes, and as numbers that can be averaged."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
"""A picture `[H, W, C]` in sRGB; C is 3, or 4 with straight alpha."""
Planes = npt.NDArray[np.float32]
"""A picture `[H, W, C]` in levels from 0 to 255. RGBA is premultiplied, so that invisible colours
do not count."""

_BAND_PIXELS = 1 << 17


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The first row and the end of each band in which a large picture is processed."""
    rows = max(1, _BAND_PIXELS // width)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def planes_of(picture: Bytes) -> Planes:
    """The numbers of a picture or of some of its rows."""
    planes = picture.astype(np.float32)
    if picture.shape[2] == 4:
        planes[..., :3] *= planes[..., 3:] / 255
    return planes


def bytes_of(planes: Planes, invisible: Bytes) -> Bytes:
    """The bytes of numbers, rounded and clipped: the inverse of `planes_of`.

    Args:
        invisible: a picture of the same shape with the colours of fully transparent pixels.
    """
    levels = np.clip(planes, 0, 255)
    if levels.shape[2] == 4:
        alpha = levels[..., 3:]
        is_visible = alpha >= 0.5
        straight = levels[..., :3] * (255 / np.where(is_visible, alpha, 1))
        levels[..., :3] = np.where(is_visible, np.minimum(straight, 255), invisible[..., :3])
    return np.rint(levels, out=levels).astype(np.uint8)
