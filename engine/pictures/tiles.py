"""Divides pictures, or their latents, into overlapping tiles of one size, and merges the results.

`Tiling` merges on a whole canvas, `TileRows` from the top down with one row of tiles in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from engine.pictures.arrays import Doubles, Floats

Window = tuple[slice, slice]
"""The rows and the columns of a tile."""

_OVERLAP_SHARE = 4
"""At least a quarter of a tile's side is shared with the next tile of a `Tiling`."""


@dataclass(frozen=True, slots=True)
class Side:
    """The tiles along one side of a picture, in its pixels.

    Attributes:
        tile: the length of each tile.
        starts: the ascending positions of the tiles.
    """

    tile: int
    starts: tuple[int, ...]

    @classmethod
    def planned(cls, length: int, tile: int, overlap: int, multiple: int = 1) -> "Side":
        """Place as few tiles as give the overlap, the first at 0 and the last at the end. They are
        spread evenly, so that all tiles overlap their neighbours about equally.

        Args:
            length: the length of the side; a multiple of `multiple`.
            tile: the most length of a tile, rounded down to the multiple.
            overlap: the least overlap of neighbours; less than `tile`.
        """
        tile = min(length, tile // multiple * multiple)
        rest = (length - tile) // multiple
        num_gaps = -(-rest // max(1, tile // multiple - -(-overlap // multiple)))
        starts = (number * rest // max(1, num_gaps) * multiple for number in range(num_gaps + 1))
        return cls(tile, tuple(starts))

    @property
    def length(self) -> int:
        return self.starts[-1] + self.tile

    def scaled(self, factor: int) -> "Side":
        """The tiles of the same picture enlarged by a factor."""
        return Side(self.tile * factor, tuple(start * factor for start in self.starts))

    def shares(self, rim: int) -> list[Floats]:
        """Each tile's share of every pixel, as `tile` numbers. The shares of a pixel add up to 1,
        so values on which all tiles agree are unchanged.

        Args:
            rim: the length at each end of a tile that is of no use next to a neighbour, because
                the network saw nothing beyond it. A share is zero in the rim, then rises to one
                over the rest of the overlap, which is at least twice the rim.
        """
        total = np.zeros(self.length)
        claims = []
        for number, start in enumerate(self.starts):
            claim = np.ones(self.tile)
            if number > 0:
                claim *= self._rise(self.starts[number - 1] + self.tile - start, rim)
            if number + 1 < len(self.starts):
                claim *= self._rise(start + self.tile - self.starts[number + 1], rim)[::-1]
            claims.append(claim)
            total[start : start + self.tile] += claim
        return [
            (claim / total[start : start + self.tile]).astype(np.float32)
            for start, claim in zip(self.starts, claims, strict=True)
        ]

    def _rise(self, shared: int, rim: int) -> Doubles:
        """The rise of a share from a tile's beginning, where its neighbour has `shared` pixels,
        too."""
        return np.clip((np.arange(self.tile) - rim + 1) / (shared - 2 * rim + 1), 0.0, 1.0)


class TileRows:
    """A result in progress, of which only one row of tiles is in memory. Rows that no further tile
    touches are finished.

    Args:
        across, down: the tiles, in the result's pixels.
        rim: the unusable length of their edges: see `Side.shares`.
    """

    def __init__(self, across: Side, down: Side, rim: int, channels: int) -> None:
        self._across, self._down = across, down
        self._shares = [
            [torch.from_numpy(share) for share in side.shares(rim)] for side in (down, across)
        ]
        self._sum = torch.zeros(channels, down.tile, across.length)

    def add(self, number: int, tile: torch.Tensor) -> torch.Tensor | None:
        """Add the next tile, `[channels, tile, tile]`, row by row.

        Returns:
            The rows that are now finished, `[channels, rows, width]`, if any.
        """
        row, column = divmod(number, len(self._across.starts))
        start = self._across.starts[column]
        share = self._shares[0][row][:, None] * self._shares[1][column]
        self._sum[:, :, start : start + self._across.tile].addcmul_(tile, share)
        if column + 1 < len(self._across.starts):
            return None
        return self._finish(row)

    def _finish(self, row: int) -> torch.Tensor:
        starts = self._down.starts
        if row + 1 == len(starts):
            return self._sum
        num_rows = starts[row + 1] - starts[row]
        finished = self._sum[:, :num_rows].clone()
        left = self._sum.shape[1] - num_rows
        self._sum[:, :left] = self._sum[:, num_rows:].clone()
        self._sum[:, left:] = 0
        return finished


class Tiling:
    """The tiles of a picture, and their weighted means on a canvas of its size.

    Attributes:
        windows: the windows of the tiles, row by row.
    """

    def __init__(self, down: Side, across: Side) -> None:
        self._down, self._across = down, across
        rows, columns = (
            [slice(start, start + side.tile) for start in side.starts] for side in (down, across)
        )
        self.windows: tuple[Window, ...] = tuple(product(rows, columns))
        self._weights = _ramp(down.tile)[:, None] * _ramp(across.tile)[None, :]

    @classmethod
    def planned(
        cls, height: int, width: int, tile_height: int, tile_width: int, unit: int = 1
    ) -> "Tiling":
        """Divide a picture into tiles of that size, or of the picture's if it is smaller.

        Args:
            unit: a divisor of all sizes and positions.
        """
        down, across = (
            Side.planned(length, tile, _overlap(min(length, tile) // unit) * unit, unit)
            for length, tile in ((height, tile_height), (width, tile_width))
        )
        return cls(down, across)

    @property
    def tile_size(self) -> tuple[int, int]:
        """The height and width of a tile."""
        return self._down.tile, self._across.tile

    def merged(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
        """Merge tiles `[N, C, h, w]`, in the order of the windows, into a picture `[N, C, H, W]`,
        with the weighted mean where they overlap."""
        total: torch.Tensor | None = None
        for window, tile in zip(self.windows, tiles, strict=True):
            if total is None:
                total = tile.new_zeros((*tile.shape[:2], self._down.length, self._across.length))
            self.add(total, window, tile)
        assert total is not None
        return total / self.total_weights(total)

    def add(self, total: torch.Tensor, window: Window, tile: torch.Tensor) -> None:
        """Add a weighted tile to the sum `[N, C, H, W]` of all."""
        total[(..., *window)] += tile * self._weights.to(tile.device)

    def total_weights(self, like: torch.Tensor) -> torch.Tensor:
        """The weights `[H, W]` by which the sum of all tiles must be divided."""
        total = torch.zeros((self._down.length, self._across.length), device=like.device)
        for window in self.windows:
            total[window] += self._weights.to(like.device)
        return total

    def scaled(self, factor: int) -> "Tiling":
        """The tiles of the same picture enlarged by a factor."""
        return Tiling(self._down.scaled(factor), self._across.scaled(factor))


def mirrored(length: int, start: int, stop: int) -> npt.NDArray[np.intp]:
    """The pixels at positions `start` to `stop` of a side that is mirrored beyond both ends,
    however far; its outermost pixels are not doubled."""
    period = max(1, 2 * (length - 1))
    at = np.arange(start, stop) % period
    return np.minimum(at, period - at).astype(np.intp)


def _overlap(side: int) -> int:
    return min(side - 1, -(-side // _OVERLAP_SHARE))


def _ramp(side: int) -> torch.Tensor:
    """Weights that rise to the middle and fall after it, but never to zero, so that a tile's edge
    adds little to the sum even if tiles of a few cells overlap by most of their size."""
    places = torch.arange(side, dtype=torch.float32)
    from_edge = torch.minimum(places, side - 1 - places) + 0.5
    return from_edge / (side / 2)
