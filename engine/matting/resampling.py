"""Reduces pictures, and enlarges what was found in the reduced ones, strip by strip."""

from typing import Any

import cv2
import numpy as np

from engine.matting.arrays import Bytes, Floats


def shrink(picture: Bytes | Floats, height: int, width: int) -> Any:
    """Reduce a picture; each new pixel is the mean of old ones. Returns the input's type."""
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def resize(picture: Floats, height: int, width: int) -> Floats:
    """Resize a picture bilinearly, or by means if it becomes smaller."""
    smaller = height * width < picture.shape[0] * picture.shape[1]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=interpolation))


def nearest(levels: Bytes, height: int, width: int) -> Bytes:
    """Resize levels by taking the nearest pixel."""
    if levels.shape[:2] == (height, width):
        return levels
    return np.asarray(cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def enlarged_rows(picture: Floats, rows: slice, height: int, width: int) -> Floats:
    """Some rows of the picture that `picture` becomes when scaled bilinearly to that size.

    Args:
        picture: [h, w, up to 4].
        rows: the rows of the result.
    """
    down, across = picture.shape[0] / height, picture.shape[1] / width
    # Maps pixel centres of the strip to those of the picture.
    place = np.array(
        [
            [across, 0.0, 0.5 * across - 0.5],
            [0.0, down, (rows.start + 0.5) * down - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (width, rows.stop - rows.start)
    return np.asarray(
        cv2.warpAffine(picture, place, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )
