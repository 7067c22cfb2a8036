"""Where tiles lie along a side of an image, and how much of each pixel is whose.

Tiles are all of one size and spread evenly. Next to a neighbour a tile's rim is of no use: the
network saw nothing beyond it. It counts nothing there, then rises to all of a pixel over what is
left of the overlap, and the shares of each pixel add up to 1, so that what all tiles agree on comes
out as it is.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.tile_places import spread


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The tiles along one side of an image, in its pixels.

    Attributes:
        tile: how long each is.
        starts: where each begins, rising.
        shares: of each, how much of every pixel of the result is its: `tile * scale` numbers.
    """

    tile: int
    starts: tuple[int, ...]
    shares: tuple[npt.NDArray[np.float32], ...]

    @property
    def length(self) -> int:
        return self.starts[-1] + self.tile


def plan_side(
    length: int, tile: int, overlap: int, *, rim: int, scale: int, multiple: int = 1
) -> Side:
    """Lay tiles along a side.

    Args:
        length: of the side; a multiple of `multiple`.
        tile: how long a tile is at most, rounded down to the multiple.
        overlap: of neighbours, at least; less than `tile`, and at least twice the rim.
        rim: what a tile is of no use for, at each end that has a neighbour.
    """
    tile = min(length, tile // multiple * multiple)
    starts = spread(length // multiple, tile // multiple, -(-overlap // multiple))
    first = tuple(start * multiple for start in starts)
    return Side(tile, first, _shares(length, tile, first, rim, scale))


def mirrored(length: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """Positions `start` to `stop` of a side that goes on beyond both ends as in a mirror, however
    far; its outermost pixels are not doubled."""
    period = max(1, 2 * (length - 1))
    at = np.arange(start, stop) % period
    return np.minimum(at, period - at).astype(np.intp)


def _shares(
    length: int, tile: int, starts: tuple[int, ...], rim: int, scale: int
) -> tuple[npt.NDArray[np.float32], ...]:
    total = np.zeros(length * scale)
    claims = []
    for number, start in enumerate(starts):
        claim = np.ones(tile * scale)
        if number > 0:
            claim *= _rise(starts[number - 1] + tile - start, tile, rim, scale)
        if number + 1 < len(starts):
            claim *= _rise(start + tile - starts[number + 1], tile, rim, scale)[::-1]
        claims.append(claim)
        total[start * scale : (start + tile) * scale] += claim
    return tuple(
        (claim / total[start * scale : (start + tile) * scale]).astype(np.float32)
        for start, claim in zip(starts, claims, strict=True)
    )


def _rise(shared: int, tile: int, rim: int, scale: int) -> npt.NDArray[np.float64]:
    """From a tile's beginning on, of which its neighbour has `shared` pixels, too."""
    blended = (shared - 2 * rim) * scale
    at = np.arange(tile * scale) - rim * scale
    return np.clip((at + 1) / (blended + 1), 0.0, 1.0)
