"""Where tiles lie along a side of an image, and their shares of each pixel.

All tiles have one size and are spread evenly. Next to a neighbour a tile's rim is of no use,
because the network saw nothing beyond it. The tile's share is zero in the rim, then rises to one
over the rest of the overlap. The shares of each pixel add up to 1, so values on which all tiles
agree are unchanged.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.pictures.tile_places import spread


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The tiles along one side of an image, in its pixels.

    Attributes:
        tile: the length of each tile.
        starts: the ascending positions of the tiles.
        shares: each tile's share of every pixel of the result, as `tile * scale` numbers.
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
    """Place tiles along a side.

    Args:
        length: the length of the side; a multiple of `multiple`.
        tile: the most length of a tile, rounded down to the multiple.
        overlap: the least overlap of neighbours; less than `tile`, and at least twice the rim.
        rim: the unusable length at each end of a tile that has a neighbour.
    """
    tile = min(length, tile // multiple * multiple)
    starts = spread(length // multiple, tile // multiple, -(-overlap // multiple))
    first = tuple(start * multiple for start in starts)
    return Side(tile, first, _shares(length, tile, first, rim, scale))


def mirrored(length: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """The pixels at positions `start` to `stop` of a side that is mirrored beyond both ends,
    however far; its outermost pixels are not doubled."""
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
    """The rise of a share from a tile's beginning, where its neighbour has `shared` pixels, too."""
    blended = (shared - 2 * rim) * scale
    at = np.arange(tile * scale) - rim * scale
    return np.clip((at + 1) / (blended + 1), 0.0, 1.0)
