"""Names the shape, size and place of each object.

Each shape of the palette is rendered with the object's centre and area, sharp and blurred, and the
one that overlaps the object best gives the name.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tools.demo_image_model.palette import PLACES, SHAPES, SIZES
from tools.demo_image_model.render import coverage
from tools.demo_image_model.segment import Blob, segment

MIN_OVERLAP = 0.70
"""Intersection over union below which an object gets no shape's name."""
BLURS = (0.0, 0.01, 0.02)
"""Standard deviations, in image widths, with which a shape is tried: decoders soften edges."""
UNIT_RADIUS, UNIT_PIXELS = 0.4, 256
DIRECTIONS = 72
"""Directions from an object's centre in which its radius is measured."""
RAY_STEP = 0.25
"""Pixels between two samples along a direction."""
MAX_PLACE_DISTANCE = 0.12
"""Largest distance from a named place, in image widths; places lie 0.25 apart."""


def _unit_areas() -> dict[str, float]:
    """Area of each shape with radius 1."""
    covered = coverage([(shape, 0.5, 0.5, UNIT_RADIUS) for shape in SHAPES], UNIT_PIXELS)
    areas = covered.sum(dim=(1, 2)) / (UNIT_PIXELS * UNIT_RADIUS) ** 2
    return dict(zip(SHAPES, areas.tolist(), strict=True))


AREAS = _unit_areas()


@dataclass(frozen=True, slots=True)
class Seen:
    """An object found in a picture. `x`, `y` (down) and `radius` are in image widths.

    `shape` and `colour` are None when no name fits. `overlap` is the intersection over union with
    the drawing of the shape that fits best. `unevenness` is the difference between the longest and
    the shortest radius, relative to the mean radius; a circle has 0.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    radius: float
    overlap: float = 1.0
    unevenness: float = 0.0

    @property
    def size(self) -> str:
        """`small` or `large`, whichever is nearer."""
        middle = (SIZES["small"][1] + SIZES["large"][0]) / 2
        return "small" if self.radius < middle else "large"

    @property
    def place(self) -> str | None:
        """The named place it is at, or None."""
        distances = {
            place: float(np.hypot(self.x - x, self.y - y)) for place, (x, y) in PLACES.items()
        }
        place = min(distances, key=lambda name: distances[name])
        return place if distances[place] <= MAX_PLACE_DISTANCE else None


@dataclass(frozen=True, slots=True)
class Reading:
    """The objects and the background found in a picture."""

    background: str | None
    objects: tuple[Seen, ...]


def read(pixels: np.ndarray) -> Reading:
    """Read a picture, `[H, W, 3]` uint8."""
    found = segment(pixels)
    return Reading(found.background, tuple(look(blob) for blob in found.blobs))


def look(blob: Blob) -> Seen:
    """Name one object of a square picture."""
    size = blob.alpha.shape[0]
    area = float(blob.alpha.sum())
    grid = (np.arange(size) + 0.5) / size
    x = float(blob.alpha.sum(axis=0) @ grid) / area
    y = float(blob.alpha.sum(axis=1) @ grid) / area
    radii = {shape: float(np.sqrt(area / AREAS[shape])) / size for shape in SHAPES}
    window, left, top = _window(blob.alpha, x, y, 1.1 * max(radii.values()))
    scale = size / window.shape[0]
    at = (x - left / size) * scale, (y - top / size) * scale
    sharp = coverage([(s, *at, radii[s] * scale) for s in SHAPES], window.shape[0]).numpy()
    overlaps = np.max([_overlaps(_blur(sharp, s * size), window) for s in BLURS], axis=0)
    best = int(overlaps.argmax())
    shape = SHAPES[best] if overlaps[best] >= MIN_OVERLAP else None
    uneven = _unevenness(blob.alpha, x * size, y * size)
    return Seen(shape, blob.colour, x, y, radii[SHAPES[best]], float(overlaps[best]), uneven)


def _unevenness(alpha: np.ndarray, x: float, y: float) -> float:
    """The unevenness of an object around (x, y), in pixels."""
    angles = 2 * np.pi * np.arange(DIRECTIONS)[:, None] / DIRECTIONS
    far = np.arange(0, alpha.shape[0], RAY_STEP)[None, :]
    rows, columns = y - 0.5 + far * np.sin(angles), x - 0.5 + far * np.cos(angles)
    radii = ndimage.map_coordinates(alpha, [rows, columns], order=1).sum(axis=1)
    return float((radii.max() - radii.min()) / radii.mean())


def _window(alpha: np.ndarray, x: float, y: float, reach: float) -> tuple[np.ndarray, int, int]:
    """A square part of `alpha` around (x, y), and its left and top, to compare fewer pixels."""
    size = alpha.shape[0]
    side = min(size, 2 * int(np.ceil((reach + 2 * BLURS[-1]) * size)))
    left, top = (int(np.clip(round(c * size - side / 2), 0, size - side)) for c in (x, y))
    return alpha[top : top + side, left : left + side], left, top


def _blur(pictures: np.ndarray, sigma: float) -> np.ndarray:
    blurred: np.ndarray = (
        ndimage.gaussian_filter(pictures, (0, sigma, sigma)) if sigma else pictures
    )
    return blurred


def _overlaps(drawn: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    shared = np.minimum(drawn, alpha).sum(axis=(1, 2))
    overlaps: np.ndarray = shared / np.maximum(drawn, alpha).sum(axis=(1, 2))
    return overlaps
