"""Makes a picture that shows where a result has detail that its input did not.

The picture has the input's size and its greys, dimmed. Blue marks detail finer than the input's
pixels, which nothing in the input confirms. Red marks where the reduced result contradicts the
input.
"""

import numpy as np

from engine.pictures.alpha import premultiplied
from engine.pictures.arrays import Bytes, Floats
from engine.pictures.resampling import Resampling

FULL_LEVELS = 24
"""The levels of 255 at which a colour is brightest: of an error in some channel, or of the root
mean square of detail."""

_DIM = 0.4
_BLUE = np.array([30, 130, 255], np.float32)
_RED = np.array([255, 40, 0], np.float32)


class HeatMap:
    """A heat map that is drawn while rows of the result come.

    Args:
        original: the input, `[h, w, C]`.
        height, width: the size of the result.
    """

    def __init__(self, original: Bytes, height: int, width: int) -> None:
        self._plain = premultiplied(original)
        small = original.shape[:2]
        self._enlarge = Resampling.between(small, (height, width))
        self._pool = Resampling.between((height, width), small, smooth=True)
        self._squares: Floats = np.zeros((*small, 1), np.float32)

    def add(self, rows: Bytes, first: int) -> None:
        """Add rows `[B, W, C]` that begin at row `first`, each row once."""
        plain = self._enlarge.band(self._plain, slice(first, first + len(rows)))
        squares = _mean_square(premultiplied(rows) - plain)
        self._pool.accumulate(self._squares, squares, first)

    def picture(self, seen: Floats) -> Bytes:
        """The heat map as RGB `[h, w, 3]`, once all rows have come.

        Args:
            seen: `engine.fidelity.consistency.Comparison.seen` of the whole result.
        """
        errors = seen - self._plain
        # Only the finer part was added: the squares of detail and contradiction add up.
        detail = np.sqrt(np.maximum(self._squares - _mean_square(errors), 0))
        contradiction = np.abs(errors).max(axis=2, keepdims=True)
        greys = self._plain[..., :3].mean(axis=2, keepdims=True)
        colours = np.repeat(_DIM * greys, 3, axis=2)
        for colour, levels in ((_BLUE, detail), (_RED, contradiction)):
            share = np.minimum(levels / FULL_LEVELS, 1)
            colours += share * (colour - colours)
        picture: Bytes = np.rint(colours).astype(np.uint8)
        return picture


def _mean_square(planes: Floats) -> Floats:
    mean: Floats = np.square(planes).mean(axis=2, keepdims=True)
    return mean
