"""Makes the levels of a cut-out's alpha, and the background of a composite."""

import numpy as np

from engine.pictures.alpha import flatten
from engine.pictures.arrays import Bytes, Floats, bands
from engine.pictures.resizing import resized


def alpha_levels(alpha: Floats, own_alpha: Bytes | None = None) -> Bytes:
    """Alpha levels [H, W] from 0 to 255, nowhere above the picture's own alpha."""
    levels = np.empty(alpha.shape, np.uint8)
    for rows in bands(*alpha.shape):
        values = alpha[rows] * np.float32(255)
        if own_alpha is not None:
            values *= own_alpha[rows] / np.float32(255)
        levels[rows] = np.rint(values)
    return levels


def covering(picture: Bytes, height: int, width: int) -> Bytes:
    """A picture's middle part, scaled to that size, as RGB with its own alpha over white."""
    picture = flatten(picture)
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    middle = np.ascontiguousarray(picture[top : top + rows, left : left + columns])
    return resized(middle, height, width)
