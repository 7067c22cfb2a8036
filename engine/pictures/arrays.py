"""Conversions between `Pixels` and arrays, and the bands in which large pictures are processed."""

import numpy as np
import numpy.typing as npt

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter

Bytes = npt.NDArray[np.uint8]
"""Levels in sRGB: `[H, W, C]` with straight alpha if C is 4, or `[H, W]` for one channel."""
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

BAND_PIXELS = 1 << 17
"""The approximate pixels of a band. Large pictures are processed in bands of rows, because
intermediate results take dozens of numbers per pixel and then exist for one band only."""


def array_of(pixels: Pixels, *, param: str = "image") -> Bytes:
    """The array of a picture. It shares the picture's memory and is read-only.

    Raises:
        InvalidParameter: there are no pixels, or the number of bytes does not fit the size.
    """
    shape = (pixels.height, pixels.width, pixels.channels)
    size = f"{pixels.width}x{pixels.height}"
    if min(shape) < 1:
        raise InvalidParameter(f"{param} has no pixels ({size})", param=param)
    expected = pixels.height * pixels.width * pixels.channels
    if len(pixels.data) != expected:
        raise InvalidParameter(
            f"{param} of {size} px and {pixels.channels} channels has "
            f"{len(pixels.data)} bytes; it must have {expected}",
            param=param,
        )
    return np.frombuffer(pixels.data, np.uint8).reshape(shape[: 2 if pixels.channels == 1 else 3])


def pixels_of(array: Bytes) -> Pixels:
    """The picture of an array: the inverse of `array_of`."""
    height, width, channels = (*array.shape, 1)[:3]
    return Pixels(width=width, height=height, channels=channels, data=array.tobytes())


def unit(levels: Bytes) -> Floats:
    """Levels from 0 to 255 as numbers from 0 to 1."""
    return np.divide(levels, 255, dtype=np.float32)


def bands(height: int, width: int) -> list[slice]:
    """The rows of a picture, divided into bands."""
    rows = max(1, BAND_PIXELS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The scaled (height, width), at least one pixel each; scales of 1 and above change nothing."""
    if scale >= 1.0:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))
