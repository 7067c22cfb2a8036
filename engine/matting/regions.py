"""Finds the region of a picture that a point marks.

Mean shift (Comaniciu and Meer 2002, by OpenCV) flattens texture and keeps edges. A flood from the
point over similar colours then fills the region around it. Floods with ever larger steps between
pixels are tried, and the one is chosen that would hardly grow with a larger step, since it has
reached edges on all sides (the idea of maximally stable regions, Matas et al. 2002).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import cv2
import numpy as np

from engine.pictures.arrays import Bools, Bytes

SPATIAL_RADIUS, COLOUR_RADIUS = 8, 16
"""The radii of mean shift, in pixels and in levels of Lab's channels."""
STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27)
"""The tried steps of floods: the largest difference in levels between neighbouring pixels."""
REACH = 5
"""A flood ends at this many steps from the point's own colour."""
STABLE = 1.1
"""A flood has reached edges if the next step makes it at most this many times larger."""
LEAST = 0.0005
"""The share of the picture below which an area is texture and not a region."""
HOLE = 0.02
"""The share of a region up to which a hole, such as a highlight, belongs to it."""
_AROUND = 4 | cv2.FLOODFILL_MASK_ONLY | (1 << 8)


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of one picture. Places are (x, y)."""

    flat: Bytes
    """The picture without its texture, in Lab."""

    @classmethod
    def of(cls, image: Bytes) -> Self:
        """Prepare a picture [h, w, 3] with a few hundred pixels a side."""
        lab = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB)
        return cls(np.asarray(cv2.pyrMeanShiftFiltering(lab, SPATIAL_RADIUS, COLOUR_RADIUS)))

    def at(self, place: tuple[int, int], within: Bools) -> Bools:
        """The region around a place, within `within` [h, w], which contains the place."""
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
            # The end of the first plateau, as everything beyond it is another object.
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
    """The region with its small holes filled."""
    count, parts, facts, _ = cv2.connectedComponentsWithStats(
        (~region).astype(np.uint8), connectivity=4
    )
    most = HOLE * np.count_nonzero(region)
    small = [number for number in range(1, count) if facts[number, cv2.CC_STAT_AREA] <= most]
    return region | np.isin(parts, small)
