"""Measures whether a result, reduced again, is the picture from which it was made.

This shows how far the result contradicts its input. It does not show whether added detail is true,
as the input contains no detail finer than its pixels: see docs/fidelity.md.
"""

import math

import numpy as np

from engine.contract.examination import Consistency
from engine.pictures.alpha import premultiplied
from engine.pictures.arrays import Bytes, Floats, bands
from engine.pictures.resampling import Resampling

MAX_PSNR_DB = 99.0
"""The value that is reported if there is no error."""
VISIBLE_LEVELS = 8
"""The change of an input pixel's colour, of 255 levels, that is visible when the two pictures are
shown in turn."""


class Comparison:
    """The comparison of a result with its input, while rows of the result come.

    Args:
        original: the input, `[h, w, C]`.
        height, width: the size of the result.

    Attributes:
        seen: the result so far, reduced to the input's size, in levels.
    """

    def __init__(self, original: Bytes, height: int, width: int) -> None:
        self._original = original
        self._shrink = Resampling.between((height, width), original.shape[:2])
        self.seen: Floats = np.zeros(original.shape, np.float32)

    def add(self, rows: Bytes, first: int) -> None:
        """Add rows `[B, W, C]` that begin at row `first`, each row once. Works in bands, as it
        needs several times their memory."""
        self._shrink.accumulate(self.seen, premultiplied(rows), first)

    def consistency(self) -> Consistency:
        """The consistency, once all rows have come."""
        squares, num_changed = 0.0, 0
        height, width = self.seen.shape[:2]
        for rows in bands(height, width):
            errors = np.abs(self.seen[rows] - premultiplied(self._original[rows]))
            num_changed += int(np.count_nonzero(errors.max(axis=2) > VISIBLE_LEVELS))
            squares += float(np.square(errors).sum(dtype=np.float64))
        rms = math.sqrt(squares / self.seen.size)
        return Consistency(
            psnr_db=min(MAX_PSNR_DB, 20 * math.log10(255 / max(rms, 1e-9))),
            rms_error=rms,
            share_changed=num_changed / (height * width),
        )
