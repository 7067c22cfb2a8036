"""What is known before alpha is estimated: `Trimap`, and one made of a subject's mask."""

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from engine.errors import InvalidParameter
from engine.matting.arrays import Bools, Bytes, Floats
from engine.matting.resampling import nearest, shrink

SUBJECT_FROM = 230
BACKGROUND_TO = 25
"""Levels of a trimap, as pymatting splits one: 0.9 and 0.1 of white."""
UNKNOWN = 128

BAND = 0.018
"""Half the width of an automatic trimap's band, as a share of the root of the picture's area."""
SURE = 0.95
"""Of a mask: a pixel is subject from here on, and background from 1 - SURE down."""


@dataclass(frozen=True, slots=True)
class Trimap:
    """Which pixels are the subject's and which are open; the rest is background. Both [H, W]."""

    is_subject: Bools
    is_unknown: Bools

    @classmethod
    def of(cls, levels: Bytes) -> Self:
        """Of grey levels [H, W]."""
        is_subject = levels >= SUBJECT_FROM
        return cls(is_subject, ~is_subject & (levels > BACKGROUND_TO))

    def levels(self) -> Bytes:
        """0, 128 and 255."""
        levels = np.zeros(self.is_subject.shape, np.uint8)
        levels[self.is_subject] = 255
        levels[self.is_unknown] = UNKNOWN
        return levels

    @property
    def num_unknown(self) -> int:
        return int(np.count_nonzero(self.is_unknown))

    def scaled(self, height: int, width: int) -> "Trimap":
        """A smaller one, which knows a pixel only where all that become it are known alike."""
        if self.is_subject.shape == (height, width):
            return self
        subject = shrink(self.is_subject.astype(np.float32), height, width)
        known = subject + shrink((~self.is_unknown).astype(np.float32), height, width)
        # 2: all subject; 1: all background; between: some of either, or unknown ones.
        is_subject = known > 2.0 - 1e-3
        is_background = (subject < 1e-3) & (known > 1.0 - 1e-3)
        return Trimap(is_subject, ~is_subject & ~is_background)


def check_trimap(trimap: Trimap) -> None:
    """
    Raises:
        InvalidParameter: there is no subject or no background in it.
    """
    if not trimap.is_subject.any():
        raise InvalidParameter(
            f"trimap has no pixels of the subject, which are white ({SUBJECT_FROM} to 255)",
            param="trimap",
        )
    if not (~trimap.is_subject & ~trimap.is_unknown).any():
        raise InvalidParameter(
            f"trimap has no pixels of the background, which are black (0 to {BACKGROUND_TO})",
            param="trimap",
        )


def trimap_of_mask(mask: Floats, height: int, width: int) -> Trimap:
    """Of a mask [h, w] of numbers from 0 to 1, for a picture of that size.

    Its border is open, by a band that grows with the picture, and so is what the mask is not sure
    of. A subject that is thinner than the band keeps its middle.
    """
    radius = max(1, round(BAND * math.sqrt(mask.shape[0] * mask.shape[1])))
    subject, background = mask >= SURE, mask <= 1.0 - SURE
    is_subject = _eroded(subject, radius)
    if not is_subject.any():
        is_subject = _middle(subject if subject.any() else mask >= 0.5)
    is_background = _eroded(background, radius)
    levels = np.full(mask.shape, UNKNOWN, np.uint8)
    levels[is_background] = 0
    levels[is_subject] = 255
    return Trimap.of(nearest(levels, height, width))


def _eroded(region: Bools, radius: int) -> Bools:
    """Without the pixels near its border; the picture's own border is none."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.erode(region.astype(np.uint8), disc)) > 0


def _middle(region: Bools) -> Bools:
    """The half of a region that is farthest from its border; nothing of an empty one."""
    if not region.any():
        return region
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(depth > np.median(depth[region]) - 1e-6) & region
