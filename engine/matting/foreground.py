"""Estimates the subject's own colours where it mixes with the background.

The method is multi-level estimation (Germer et al. 2020, "Fast Multi-Level Foreground Estimation"):
a picture of one pixel is doubled again and again, and at each size both colours of a pixel move to
where they mix to the picture's colour and are like their neighbours'. Pixels are updated like the
fields of a chessboard, first the black ones, then the white ones.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.pictures.arrays import Bools, Bytes, Floats, bands, scaled_size, unit
from engine.pictures.resizing import enlarged_rows, resized

MAX_PIXELS = 2_000_000
"""The most pixels of a picture at which colours are estimated. For a larger picture they are
derived from these, pixel by pixel, so that `I = alpha F + (1 - alpha) B` holds as nearly as
possible."""
MARGIN = 16
"""The width of a margin around the subject that also gets its colours, since scaling a cut-out
without regard to alpha mixes them in. Everything beyond is black."""


SMALL_SIDE, SMALL_SWEEPS, SWEEPS = 32, 10, 2
"""Sweeps over pictures up to this side, and over larger ones; the paper's values."""
REGULARISATION = np.float32(1e-5)
"""The weight of a neighbour with the same alpha; the paper's value."""
_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True, slots=True)
class Foreground:
    """Colours [H, W, 3], and the size of the picture at which they were estimated."""

    colours: Bytes
    width: int
    height: int


def estimate_foreground(image: Bytes, alpha: Floats) -> Generator[None, None, Foreground]:
    """Estimate the foreground's colours from a picture [H, W, 3] and its alpha [H, W]. Pauses so
    that others can have their turn."""
    colours = np.zeros_like(image)
    if not alpha.any():
        return Foreground(colours, 0, 0)
    area = _surroundings(alpha > 0, MARGIN)
    part, part_alpha = image[area], alpha[area]
    height, width = part_alpha.shape
    low = scaled_size(height, width, math.sqrt(MAX_PIXELS / part_alpha.size))
    small = unit(np.ascontiguousarray(resized(part, *low)))
    small_alpha = np.ascontiguousarray(resized(part_alpha, *low))
    both = yield from _estimated(small, small_alpha)
    front, back = (np.ascontiguousarray(found) for found in (both[..., :3], both[..., 3:]))
    if low == (height, width):
        colours[area] = _bytes(front)
    else:
        target = colours[area]
        for rows in bands(height, width):
            target[rows] = _bytes(
                _consistent(
                    unit(part[rows]),
                    part_alpha[rows][..., None],
                    enlarged_rows(front, rows, height, width),
                    enlarged_rows(back, rows, height, width),
                )
            )
            yield
    return Foreground(colours, low[1], low[0])


def _estimated(image: Floats, alpha: Floats) -> Generator[None, None, Floats]:
    """The colours [H, W, 6] of the subject, then those of the background, at a picture's size."""
    height, width = alpha.shape
    means = [_mean(image, alpha > 0.9), _mean(image, alpha < 0.1)]
    both = np.concatenate(means, dtype=np.float32)[None, None]
    num_levels = max(1, math.ceil(math.log2(max(height, width))))
    for level in range(num_levels + 1):
        size = [round(side ** (level / num_levels)) for side in (height, width)]
        num_sweeps = SMALL_SWEEPS if max(size) <= SMALL_SIDE else SWEEPS
        both = _smoothed(_nearest(image, size), _nearest(alpha, size), both, num_sweeps)
        yield
    return both


def _mean(image: Floats, region: Bools) -> Floats:
    return np.asarray(image[region].sum(axis=0) / (region.sum() + 1e-5))


def _nearest(array: Any, size: Sequence[int]) -> Any:
    """An array scaled to another size without mixing pixels."""
    rows, columns = (np.arange(to) * of // to for to, of in zip(size, array.shape, strict=False))
    return array[rows[:, None], columns]


def _smoothed(image: Floats, alpha: Floats, both: Floats, num_sweeps: int) -> Floats:
    """Both colours after some sweeps over all pixels of a picture.

    Pixel by pixel, colours F and B minimise `(alpha F + (1 - alpha) B - I)^2` and, for each of four
    neighbours, the squared differences to its colours, weighted by how alpha changes.
    """
    height, width = alpha.shape
    colours = np.pad(_nearest(both, (height, width)), [(1, 1), (1, 1), (0, 0)], mode="edge")
    beside = np.pad(alpha, 1, mode="edge")
    shares = np.stack([alpha, 1 - alpha], axis=-1)
    weights = np.stack(
        [REGULARISATION + np.abs(alpha - _shifted(beside, *step)) for step in _STEPS], axis=-1
    )
    diagonal = shares * shares + weights.sum(axis=-1, keepdims=True)
    mixed = alpha * (1 - alpha)
    scale = 1 / (diagonal[..., 0] * diagonal[..., 1] - mixed * mixed)
    for _, first in itertools.product(range(num_sweeps), (0, 1)):
        for top in (0, 1):
            field = np.s_[top::2, (top + first) % 2 :: 2]
            wanted = shares[field][..., None] * image[field][..., None, :]
            for number, step in enumerate(_STEPS):
                near = _shifted(colours, *step)[field].reshape(wanted.shape)
                wanted += weights[field][..., number, None, None] * near
            front, back = wanted[..., 0, :], wanted[..., 1, :]
            across = mixed[field][..., None]
            found = [
                diagonal[field][..., 1:] * front - across * back,
                diagonal[field][..., :1] * back - across * front,
            ]
            new = np.concatenate(found, axis=-1) * scale[field][..., None]
            _shifted(colours, 0, 0)[field] = new.clip(0.0, 1.0)
        for edge, inside in ((0, 1), (-1, -2)):
            colours[edge] = colours[inside]
            colours[:, edge] = colours[:, inside]
    return np.asarray(_shifted(colours, 0, 0))


def _shifted(padded: Any, down: int, right: int) -> Any:
    """An array without its margin of one pixel, as seen from a neighbour."""
    height, width = padded.shape[:2]
    return padded[1 + down : height - 1 + down, 1 + right : width - 1 + right]


def _surroundings(region: Bools, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a region that is not empty, with a margin on each side."""
    sides = []
    for axis in (0, 1):
        inside = np.flatnonzero(region.any(axis=1 - axis))
        size = region.shape[axis]
        sides.append(slice(max(0, inside[0] - margin), min(size, inside[-1] + 1 + margin)))
    return sides[0], sides[1]


def _consistent(image: Floats, alpha: Floats, front: Floats, back: Floats) -> Floats:
    """The pair of colours nearest to (front, back) among those that mix to the picture's colour."""
    rest = image - alpha * front - (1 - alpha) * back
    return np.asarray(front + alpha * rest / (alpha * alpha + (1 - alpha) * (1 - alpha)))


def _bytes(colours: Floats) -> Bytes:
    return np.asarray(np.rint(colours.clip(0.0, 1.0) * 255), np.uint8)
