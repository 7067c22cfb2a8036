"""What is known before alpha is estimated, as given by a client or made from a subject's mask."""

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from engine.errors import InvalidParameter
from engine.pictures.arrays import Bools, Bytes, Floats
from engine.pictures.resizing import resized

SUBJECT_FROM = 230
BACKGROUND_TO = 25
"""The levels that divide a trimap, as in pymatting: 0.9 and 0.1 of white."""
UNKNOWN = 128

BAND = 0.018
"""Half the width of an automatic trimap's band, as a share of the root of the picture's area."""
SURE = 0.95
"""The mask value from which a pixel is subject; it is background up to 1 - SURE."""


@dataclass(frozen=True, slots=True)
class Trimap:
    """The subject's pixels and the open ones; the rest is background. Both are [H, W]."""

    is_subject: Bools
    is_unknown: Bools

    @classmethod
    def of(cls, levels: Bytes) -> Self:
        """Make a trimap from grey levels [H, W]."""
        is_subject = levels >= SUBJECT_FROM
        return cls(is_subject, ~is_subject & (levels > BACKGROUND_TO))

    def levels(self) -> Bytes:
        """The trimap as levels 0, 128 and 255."""
        levels = np.zeros(self.is_subject.shape, np.uint8)
        levels[self.is_subject] = 255
        levels[self.is_unknown] = UNKNOWN
        return levels

    @property
    def num_unknown(self) -> int:
        return int(np.count_nonzero(self.is_unknown))

    def scaled(self, height: int, width: int) -> "Trimap":
        """A smaller trimap. A pixel is known only if all pixels that it replaces are known
        alike."""
        if self.is_subject.shape == (height, width):
            return self
        subject = resized(self.is_subject.astype(np.float32), height, width)
        known = subject + resized((~self.is_unknown).astype(np.float32), height, width)
        # 2 is all subject and 1 all background; between are mixed or unknown pixels.
        is_subject = known > 2.0 - 1e-3
        is_background = (subject < 1e-3) & (known > 1.0 - 1e-3)
        return Trimap(is_subject, ~is_subject & ~is_background)


def check_trimap(trimap: Trimap) -> None:
    """Check that a trimap has both subject and background.

    Raises:
        InvalidParameter: one of them is missing.
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
    """Make the trimap of a picture from a mask [h, w] with numbers from 0 to 1.

    A band along the mask's border is open, whose width grows with the picture, and so is every
    pixel of which the mask is unsure. A subject that is thinner than the band keeps its middle.
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
    return Trimap.of(resized(levels, height, width, cv2.INTER_NEAREST_EXACT))


def _eroded(region: Bools, radius: int) -> Bools:
    """The region without pixels near its border; the picture's own border does not count."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.erode(region.astype(np.uint8), disc)) > 0


def _middle(region: Bools) -> Bools:
    """The half of a region that is farthest from its border; empty for an empty region."""
    if not region.any():
        return region
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(depth > np.median(depth[region]) - 1e-6) & region
