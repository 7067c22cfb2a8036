"""What a caller says of the subject, by a box or points: `steer` corrects the network's mask.

GrabCut (Rother, Kolmogorov and Blake 2004) by OpenCV: colours inside and outside are learned from
what is marked, and a cut between them follows the picture's edges.
"""

import contextlib
import math
from collections.abc import Sequence

import cv2
import numpy as np

from engine.matting.arrays import Bools, Bytes, Floats, scaled_size
from engine.matting.resampling import resize, shrink
from engine.matting.trimap import Trimap
from engine.matting_types import Box, Point

MAX_PIXELS = 200_000
"""Of the picture that is cut: the trimap's band is wider than one of its pixels."""
ROUNDS = 5
POINT = 0.012
"""Radius of what a point marks, as a share of the root of the picture's area."""
MIN_PIXELS = 16
"""Of either side, for colours to be learned from."""


def steer(image: Bytes, mask: Floats, box: Box | None, points: Sequence[Point]) -> Floats:
    """A mask [h, w] of numbers from 0 to 1 for a picture [H, W, 3], corrected; of another size.

    Args:
        mask: the network's, of any size.
        box, points: in the picture's pixels.
    """
    height, width = image.shape[:2]
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / (height * width)))
    small = shrink(image, *low)
    guess = resize(mask, *low)
    marks = _marks(guess, low, (height, width), box, points)
    subject = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    if min(np.count_nonzero(subject), np.count_nonzero(~subject)) < MIN_PIXELS:
        return np.where(subject, guess.clip(0.96), guess.clip(None, 0.04))
    cv2.setRNGSeed(0)
    with contextlib.suppress(cv2.error):  # no model fits a picture of one colour
        cv2.grabCut(
            np.ascontiguousarray(small[..., ::-1]),
            marks,
            None,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            ROUNDS,
            cv2.GC_INIT_WITH_MASK,
        )
    found = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    found = _pointed_at(found, low, (height, width), points)
    # A little softness, so that the band lies around the cut.
    return np.asarray(cv2.GaussianBlur(found.astype(np.float32), (0, 0), 1.0))


def with_points(trimap: Trimap, points: Sequence[Point]) -> Trimap:
    """What points say is known, however small it is."""
    levels = trimap.levels()
    radius = _radius(*levels.shape)
    for point in points:
        cv2.circle(levels, (point.x, point.y), radius, 255 if point.is_subject else 0, -1)
    return Trimap.of(levels)


def _radius(height: int, width: int) -> int:
    """Of what a point marks."""
    return max(1, round(POINT * math.sqrt(height * width)))


def _marks(
    guess: Floats,
    low: tuple[int, int],
    size: tuple[int, int],
    box: Box | None,
    points: Sequence[Point],
) -> Bytes:
    """GrabCut's mask: what is sure, and what is only likely."""
    marks = np.where(guess >= 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    down, across = low[0] / size[0], low[1] / size[1]
    if box is not None:
        left, top = math.floor(box[0] * across), math.floor(box[1] * down)
        right, bottom = math.ceil(box[2] * across), math.ceil(box[3] * down)
        inside = np.zeros(low, bool)
        inside[top:bottom, left:right] = True
        if not (marks[inside] == cv2.GC_PR_FGD).any():
            # The network saw something else: all of the box is as likely.
            marks[inside] = cv2.GC_PR_FGD
        marks[~inside] = cv2.GC_BGD
    radius = _radius(*low)
    for point in points:
        place = (int(point.x * across), int(point.y * down))
        cv2.circle(marks, place, radius, cv2.GC_FGD if point.is_subject else cv2.GC_BGD, -1)
    return marks


def _pointed_at(
    found: Bools, low: tuple[int, int], size: tuple[int, int], points: Sequence[Point]
) -> Bools:
    """Only the parts that a point of the subject is in, if there are such points."""
    wanted = [point for point in points if point.is_subject]
    if not wanted:
        return found
    _, parts = cv2.connectedComponents(found.astype(np.uint8))
    kept = {
        int(parts[int(point.y * low[0] / size[0]), int(point.x * low[1] / size[1])])
        for point in wanted
    } - {0}
    return np.isin(parts, list(kept)) if kept else found
