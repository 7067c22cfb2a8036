"""Whether a result, made smaller again, is the picture that it was made of.

Says how far it contradicts its input. It does not say whether what was added is true, as the input
holds nothing about detail finer than its own pixels: see docs/fidelity.md.
"""

import math

import numpy as np

from engine.fidelity.planes import Bytes, Planes, bands, planes_of
from engine.fidelity.resampling import Resampling
from engine.image_types import Consistency

MAX_PSNR_DB = 99.0
"""Reported where there is no error."""
VISIBLE_LEVELS = 8
"""Of 255; a change of an input pixel's colour that is seen where the two are shown in turn."""


class Comparison:
    """Of a result with its input, while rows of the result come.

    Args:
        original: `[h, w, C]`, the input.
        height, width: of the result.

    Attributes:
        seen: the result shrunk to the input's size, in levels, as far as its rows have come.
    """

    def __init__(self, original: Bytes, height: int, width: int) -> None:
        self._original = original
        self._shrink = Resampling.between((height, width), original.shape[:2])
        self.seen: Planes = np.zeros(original.shape, np.float32)

    def add(self, rows: Bytes, first: int) -> None:
        """Rows `[B, W, C]` from that one on, each once; in bands, as several times their memory is
        needed."""
        self._shrink.accumulate(self.seen, planes_of(rows), first)

    def consistency(self) -> Consistency:
        """Once all rows have come."""
        squares, num_changed = 0.0, 0
        height, width = self.seen.shape[:2]
        for first, end in bands(height, width):
            errors = np.abs(self.seen[first:end] - planes_of(self._original[first:end]))
            num_changed += int(np.count_nonzero(errors.max(axis=2) > VISIBLE_LEVELS))
            squares += float(np.square(errors).sum(dtype=np.float64))
        rms = math.sqrt(squares / self.seen.size)
        return Consistency(
            psnr_db=min(MAX_PSNR_DB, 20 * math.log10(255 / max(rms, 1e-9))),
            rms_error=rms,
            share_changed=num_changed / (height * width),
        )


def measure(result: Bytes, original: Bytes) -> Consistency:
    """Compare the result, shrunk to the original's size, with it.

    Args:
        result, original: `[H, W, C]` and `[h, w, C]` of equal C.
    """
    height, width = result.shape[:2]
    comparison = Comparison(original, height, width)
    for first, end in bands(height, width):
        comparison.add(result[first:end], first)
    return comparison.consistency()
