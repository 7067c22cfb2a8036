"""A picture of where a result holds detail that its input did not.

Of the input's size, its greys dimmed. Blue: detail finer than the input's pixels, which nothing in
the input confirms. Red: the result, made smaller again, contradicts the input.
"""

import numpy as np

from engine.fidelity.consistency import Comparison
from engine.fidelity.planes import Bytes, Planes, bands, planes_of
from engine.fidelity.resampling import Resampling

FULL_LEVELS = 24
"""Levels of 255 at which a colour is at its brightest: of an error in some channel, or of the
detail's root mean square."""

_DIM = 0.4
_BLUE = np.array([30, 130, 255], np.float32)
_RED = np.array([255, 40, 0], np.float32)


class HeatMap:
    """Drawn while rows of the result come.

    Args:
        original: `[h, w, C]`, the input.
        height, width: of the result.
    """

    def __init__(self, original: Bytes, height: int, width: int) -> None:
        self._plain = planes_of(original)
        small = original.shape[:2]
        self._enlarge = Resampling.between(small, (height, width))
        self._pool = Resampling.between((height, width), small, smooth=True)
        self._squares: Planes = np.zeros((*small, 1), np.float32)

    def add(self, rows: Bytes, first: int) -> None:
        """Rows `[B, W, C]` from that one on, each once."""
        plain = self._enlarge.band(self._plain, first, first + len(rows))
        squares = _mean_square(planes_of(rows) - plain)
        self._pool.accumulate(self._squares, squares, first)

    def picture(self, seen: Planes) -> Bytes:
        """RGB `[h, w, 3]`, once all rows have come.

        Args:
            seen: the result shrunk to the input's size, of a `Comparison`.
        """
        errors = seen - self._plain
        # What was added is the finer part alone: detail and contradiction add up by their squares.
        detail = np.sqrt(np.maximum(self._squares - _mean_square(errors), 0))
        contradiction = np.abs(errors).max(axis=2, keepdims=True)
        greys = self._plain[..., :3].mean(axis=2, keepdims=True)
        colours = np.repeat(_DIM * greys, 3, axis=2)
        for colour, levels in ((_BLUE, detail), (_RED, contradiction)):
            share = np.minimum(levels / FULL_LEVELS, 1)
            colours += share * (colour - colours)
        picture: Bytes = np.rint(colours).astype(np.uint8)
        return picture


def heat_map(result: Bytes, original: Bytes) -> Bytes:
    """RGB `[h, w, 3]`.

    Args:
        result, original: `[H, W, C]` and `[h, w, C]` of equal C.
    """
    height, width = result.shape[:2]
    comparison = Comparison(original, height, width)
    heat = HeatMap(original, height, width)
    for first, end in bands(height, width):
        comparison.add(result[first:end], first)
        heat.add(result[first:end], first)
    return heat.picture(comparison.seen)


def _mean_square(planes: Planes) -> Planes:
    mean: Planes = np.square(planes).mean(axis=2, keepdims=True)
    return mean
