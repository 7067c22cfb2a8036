"""Conversions between `Pixels` and arrays with rows first.

`H W` in shapes are a picture's rows and columns.
"""

import numpy as np
import numpy.typing as npt

from engine.contract.pixels import Pixels

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

STRIP_PIXELS = 1 << 17
"""The approximate pixels of a strip. Large pictures are processed in strips of rows, because
intermediate results take dozens of numbers per pixel and then exist for one strip only."""


def array_of(pixels: Pixels) -> Bytes:
    """The array [H, W, channels], or [H, W] for one channel. Shares the memory, read-only."""
    shape = (pixels.height, pixels.width, pixels.channels)[: 2 if pixels.channels == 1 else 3]
    return np.frombuffer(pixels.data, np.uint8).reshape(shape)


def pixels_of(array: Bytes) -> Pixels:
    """The picture of an array: the inverse of `array_of`."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    return Pixels(width=width, height=height, channels=channels, data=array.tobytes())


def unit(levels: Bytes) -> Floats:
    """Levels from 0 to 255 as numbers from 0 to 1."""
    return np.divide(levels, 255, dtype=np.float32)


def strips(height: int, width: int) -> list[slice]:
    """The rows of a picture, divided into strips."""
    rows = max(1, STRIP_PIXELS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The scaled (height, width), at least one pixel each; scales of 1 and above change nothing."""
    if scale >= 1.0:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))
