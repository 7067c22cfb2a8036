"""Other sizes of whole pictures, and of bands of them, by OpenCV."""

from typing import TypeVar

import cv2
import numpy as np

from engine.pictures.arrays import Bytes, Floats

_Array = TypeVar("_Array", Bytes, Floats)


def resized(picture: _Array, height: int, width: int, kernel: int | None = None) -> _Array:
    """A picture `[H, W]` or `[H, W, C]` in another size, with numbers of its own type; the picture
    itself if the size is equal.

    Args:
        kernel: OpenCV's interpolation. None: means of pixels if the picture becomes smaller, else
            bilinear.
    """
    if picture.shape[:2] == (height, width):
        return picture
    if kernel is None:
        smaller = height * width < picture.shape[0] * picture.shape[1]
        kernel = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    result: _Array = cv2.resize(picture, (width, height), interpolation=kernel)
    return result


def enlarged_rows(picture: Floats, rows: slice, height: int, width: int) -> Floats:
    """Some rows of the picture that `picture` becomes when scaled bilinearly to that size.

    Args:
        picture: [h, w, up to 4].
        rows: the rows of the result.
    """
    down, across = picture.shape[0] / height, picture.shape[1] / width
    # Maps pixel centres of the band to those of the picture.
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
