"""Which part of a picture somebody points at: `Regions`.

Mean shift (Comaniciu and Meer 2002, by OpenCV) flattens texture and keeps edges. A flood from the
point over like colours then fills what the point lies in, and of the floods with ever larger steps
from pixel to pixel the one is taken that would hardly grow with a larger step: it has come to edges
on all sides (the idea of maximally stable regions, Matas et al. 2002).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import cv2
import numpy as np

from engine.matting.arrays import Bools, Bytes

SPATIAL_RADIUS, COLOUR_RADIUS = 8, 16
"""Of mean shift, in pixels and in levels of Lab's channels."""
STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27)
"""Levels between neighbouring pixels that a flood goes over, each tried."""
REACH = 5
"""So many steps from the point's own colour a flood ends."""
STABLE = 1.1
"""Growth from one step to the next up to which a flood has come to edges."""
LEAST = 0.0005
"""Of the picture: what is smaller is texture and no region."""
HOLE = 0.02
"""Of a region: smaller holes in it, such as highlights, are of it."""
_AROUND = 4 | cv2.FLOODFILL_MASK_ONLY | (1 << 8)


@dataclass(frozen=True, slots=True)
class Regions:
    """Those of one picture. Places are (x, y)."""

    flat: Bytes
    """The picture without its texture, in Lab."""

    @classmethod
    def of(cls, image: Bytes) -> Self:
        """Of a picture [h, w, 3] of a few hundred pixels a side."""
        lab = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB)
        return cls(np.asarray(cv2.pyrMeanShiftFiltering(lab, SPATIAL_RADIUS, COLOUR_RADIUS)))

    def at(self, place: tuple[int, int], within: Bools) -> Bools:
        """The region around a place, inside of `within` [h, w], which the place is in."""
        floods = [self._flood(place, within, step) for step in STEPS]
        areas = [np.count_nonzero(flood) for flood in floods]
        least = max(1.0, LEAST * within.size)
        growths = [
            after / before if before >= least else math.inf
            for before, after in pairwise(map(float, areas))
        ]
        chosen = int(np.argmin(growths)) if min(growths) < math.inf else len(STEPS) - 1
        stable = [number for number, growth in enumerate(growths) if growth <= STABLE]
        if stable:
            # The end of the first plateau: what lies beyond it is something else.
            chosen = stable[0]
            while chosen < len(growths) and growths[chosen] <= STABLE:
                chosen += 1
        return _filled(floods[chosen]) & within

    def _flood(self, place: tuple[int, int], within: Bools, step: int) -> Bools:
        x, y = place
        far = np.abs(self.flat.astype(np.int16) - self.flat[y, x]).max(axis=2) > REACH * step
        closed = np.pad((far | ~within).astype(np.uint8), 1, constant_values=1)
        blocked = closed.copy()
        cv2.floodFill(self.flat, blocked, place, 0, (step,) * 3, (step,) * 3, _AROUND)
        return np.asarray((blocked != closed)[1:-1, 1:-1])


def _filled(region: Bools) -> Bools:
    """With its small holes."""
    count, parts, facts, _ = cv2.connectedComponentsWithStats(
        (~region).astype(np.uint8), connectivity=4
    )
    most = HOLE * np.count_nonzero(region)
    small = [number for number in range(1, count) if facts[number, cv2.CC_STAT_AREA] <= most]
    return region | np.isin(parts, small)
