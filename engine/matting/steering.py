"""Corrects the network's mask by the box or points with which a client marks the subject.

With a box the network sees only that part (`engine.matting.job`), and nothing outside it stays.
A point that the mask agrees with changes nothing, except that of several parts only those with a
point stay. A point that the mask contradicts adds or removes the region around it
(`engine.matting.regions`), and nothing else.
"""

import contextlib
import math
from collections.abc import Sequence

import cv2
import numpy as np

from engine.contract.matte import Box, Point
from engine.matting.regions import Regions
from engine.matting.trimap import SURE, Trimap
from engine.pictures.arrays import Bools, Bytes, Floats, scaled_size
from engine.pictures.resizing import resized

MAX_PIXELS = 200_000
"""The most pixels of the picture in which regions are sought; the trimap's band is wider than one
of its pixels."""
GRABCUT_ROUNDS = 5
POINT = 0.012
"""The radius of the area that a point marks, as a share of the root of the picture's area."""
POINT_LEVELS = 24
"""The largest difference in levels from the point's own pixel for pixels marked with it."""
LINKED = 1.0 - SURE
"""The least mask value that links two parts into one."""
RIM = 2
"""Half the width in pixels of what remains of an object at the border of a removed region."""
MOST_OF_PART = 0.7
"""A region that covers this share of a part of the mask stands for the whole part."""
MIN_PIXELS = 16
"""The least number of pixels of subject and background from which colours can be learned."""


def steer(image: Bytes, mask: Floats, box: Box | None, points: Sequence[Point]) -> Floats:
    """Correct the mask [h, w], with numbers from 0 to 1, of a picture [H, W, 3].

    Args:
        mask: the network's mask, of any size.
        box, points: the marks, in the picture's pixels.
    """
    size = image.shape[:2]
    if box is not None:
        mask = _boxed(image, mask, box)
    wrong = [p for p in points if (mask[_place(p, size, mask.shape)] >= 0.5) != p.is_subject]
    if wrong:
        mask = _with_regions(image, mask, wrong, points)
    wanted = [p for p in points if p.is_subject]
    chooses = any(p not in wrong for p in wanted)
    return _pointed_at(mask, size, wanted) if chooses else mask


def with_points(image: Bytes, trimap: Trimap, points: Sequence[Point]) -> Trimap:
    """Add the points to a trimap as known pixels, however small they are. If a point was not known
    before, pixels of similar colour near it become known, too."""
    levels = trimap.levels()
    radius = max(1, round(POINT * math.sqrt(levels.size)))
    for point in points:
        said = 255 if point.is_subject else 0
        if levels[point.y, point.x] == said:
            continue
        top, left = max(0, point.y - radius), max(0, point.x - radius)
        area = (slice(top, point.y + radius + 1), slice(left, point.x + radius + 1))
        part = image[area].astype(np.int16)
        y, x = point.y - top, point.x - left
        alike = np.abs(part - part[y, x]).max(axis=2) <= POINT_LEVELS
        near = cv2.circle(np.zeros(alike.shape, np.uint8), (x, y), radius, 1, -1)
        _, parts = cv2.connectedComponents((alike & (near > 0)).astype(np.uint8), connectivity=4)
        levels[area][parts == parts[y, x]] = said
    return Trimap.of(levels)


def _place(point: Point, size: tuple[int, ...], of: tuple[int, ...]) -> tuple[int, int]:
    """The (row, column) of a point in a picture of another size."""
    return point.y * of[0] // size[0], point.x * of[1] // size[1]


def _boxed(image: Bytes, mask: Floats, box: Box) -> Floats:
    """The mask without what is outside the box. If nothing is left, the network saw something else:
    GrabCut (Rother, Kolmogorov and Blake 2004, by OpenCV) then learns the colours inside and
    outside, and a cut between them follows the picture's edges."""
    height, width = image.shape[:2]
    down, across = mask.shape[0] / height, mask.shape[1] / width
    rows = slice(math.floor(box[1] * down), math.ceil(box[3] * down))
    columns = slice(math.floor(box[0] * across), math.ceil(box[2] * across))
    inside = np.zeros_like(mask)
    inside[rows, columns] = mask[rows, columns]
    if (inside >= 0.5).any():
        return inside
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / (height * width)))
    marks = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    marks[rows, columns] = cv2.GC_PR_FGD
    marks = resized(marks, *low, cv2.INTER_NEAREST_EXACT)
    subject = marks == cv2.GC_PR_FGD
    if min(np.count_nonzero(subject), np.count_nonzero(~subject)) < MIN_PIXELS:
        return resized(subject.astype(np.float32), *mask.shape)
    cv2.setRNGSeed(0)
    with contextlib.suppress(cv2.error):  # no model fits a picture with a single colour
        cv2.grabCut(
            np.ascontiguousarray(resized(image, *low)[..., ::-1]),
            marks,
            None,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            GRABCUT_ROUNDS,
            cv2.GC_INIT_WITH_MASK,
        )
    return _soft(marks == cv2.GC_PR_FGD, mask.shape)


def _with_regions(
    image: Bytes, mask: Floats, wrong: Sequence[Point], points: Sequence[Point]
) -> Floats:
    """The mask with these points' regions added or removed, at the size of the regions."""
    height, width = image.shape[:2]
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / (height * width)))
    regions = Regions.of(resized(image, *low))
    before = subject = resized(mask, *low) >= 0.5
    for point in wrong:
        row, column = _place(point, (height, width), low)
        if subject[row, column] == point.is_subject:
            continue  # an earlier region has it
        others = [p for p in points if p.is_subject != point.is_subject]
        opposed = _discs(low, [_place(p, (height, width), low) for p in others])
        mark = _discs(low, [(row, column)])
        open_to = (subject != point.is_subject) & (mark | ~opposed)
        region = regions.at((column, row), open_to) | (mark & ~opposed)
        subject = subject | region if point.is_subject else _without(subject, region, opposed)
    added, removed = subject & ~before, before & ~subject
    fine = resized(mask, *low)
    return np.maximum(fine, _soft(added, low)) * (1 - _soft(removed, low))


def _without(subject: Bools, region: Bools, kept: Bools) -> Bools:
    """A subject without a region and the rim of the region's object. A part of the subject goes as
    a whole if the region has most of it and nothing in it is `kept`."""
    _, parts = cv2.connectedComponents(subject.astype(np.uint8))
    for part in np.unique(parts[region & subject]):
        whole = parts == part
        is_most = np.count_nonzero(region & whole) > MOST_OF_PART * np.count_nonzero(whole)
        if is_most and not (whole & kept).any():
            region = region | whole
    rest = subject & ~region
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RIM + 1, 2 * RIM + 1))
    thick = cv2.morphologyEx(rest.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * RIM + 1, 4 * RIM + 1))
    beside = cv2.dilate(region.astype(np.uint8), wide) > 0
    return np.asarray(rest & (thick | ~beside | kept))


def _discs(shape: tuple[int, int], places: Sequence[tuple[int, int]]) -> Bools:
    """The areas that points mark at these rows and columns."""
    discs = np.zeros(shape, np.uint8)
    radius = max(1, round(POINT * math.sqrt(shape[0] * shape[1])))
    for row, column in places:
        cv2.circle(discs, (column, row), radius, 1, -1)
    return discs > 0


def _soft(region: Bools, shape: tuple[int, ...]) -> Floats:
    """The region as a mask with a soft border, so that the trimap's band lies around it."""
    blurred = cv2.GaussianBlur(region.astype(np.float32), (0, 0), 1.0)
    return resized(np.asarray(blurred), *shape[:2])


def _pointed_at(mask: Floats, size: tuple[int, ...], points: Sequence[Point]) -> Floats:
    """The mask with only the parts that contain these points."""
    count, parts = cv2.connectedComponents((mask >= LINKED).astype(np.uint8))
    kept = {int(parts[_place(point, size, mask.shape)]) for point in points}
    if len(kept) == count - 1:
        return mask
    return np.where(np.isin(parts, list(kept)), mask, np.float32(0))
