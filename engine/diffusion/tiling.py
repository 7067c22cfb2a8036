"""Divides a large picture, or its latents, into overlapping tiles of equal size."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.pictures.tile_places import spread

Window = tuple[slice, slice]
"""The rows and the columns of a tile."""

_OVERLAP_SHARE = 4
"""At least a quarter of a tile's side is shared with the next tile."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The positions of a picture's tiles, and how tiles are merged.

    Attributes:
        height, width: the size of the picture.
        windows: the windows of the tiles, row by row; all of one size, spread evenly.
        weights: `[h, w]`, the weights within a tile, which fall towards its edges but never to
            zero.
    """

    height: int
    width: int
    windows: tuple[Window, ...]
    weights: torch.Tensor

    @property
    def tile_size(self) -> tuple[int, int]:
        """The height and width of a tile."""
        height, width = self.weights.shape
        return height, width

    def merged(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
        """Merge tiles `[N, C, h, w]`, in the order of the windows, into a picture `[N, C, H, W]`,
        with the weighted mean where they overlap."""
        total: torch.Tensor | None = None
        for window, tile in zip(self.windows, tiles, strict=True):
            if total is None:
                total = tile.new_zeros((*tile.shape[:2], self.height, self.width))
            self.add(total, window, tile)
        assert total is not None
        return total / self.total_weights(total)

    def add(self, total: torch.Tensor, window: Window, tile: torch.Tensor) -> None:
        """Add a weighted tile to the sum `[N, C, H, W]` of all."""
        total[(..., *window)] += tile * self.weights.to(tile.device)

    def total_weights(self, like: torch.Tensor) -> torch.Tensor:
        """The weights `[H, W]` by which the sum of all tiles must be divided."""
        total = torch.zeros((self.height, self.width), device=like.device)
        for window in self.windows:
            total[window] += self.weights.to(like.device)
        return total

    def scaled(self, factor: int) -> "Tiling":
        """The tiles of the same picture enlarged by a factor."""
        return _tiling(
            self.height * factor,
            self.width * factor,
            tuple(
                (_times(rows, factor), _times(columns, factor)) for rows, columns in self.windows
            ),
        )


def tile(height: int, width: int, tile_height: int, tile_width: int, unit: int = 1) -> Tiling:
    """Divide a picture into tiles of that size, or of the picture's if it is smaller.

    Args:
        unit: a divisor of all sizes and positions.
    """
    rows = _spread(height, min(height, tile_height), unit)
    columns = _spread(width, min(width, tile_width), unit)
    return _tiling(height, width, tuple((row, column) for row in rows for column in columns))


def _spread(length: int, side: int, unit: int) -> list[slice]:
    """The tiles along a side, as few as give enough overlap."""
    overlap = min(side // unit - 1, -(-side // unit // _OVERLAP_SHARE))
    starts = spread(length // unit, side // unit, overlap)
    return [slice(start * unit, start * unit + side) for start in starts]


def _tiling(height: int, width: int, windows: tuple[Window, ...]) -> Tiling:
    rows, columns = windows[0]
    weights = _ramp(rows.stop)[:, None] * _ramp(columns.stop)[None, :]
    return Tiling(height, width, windows, weights)


def _ramp(side: int) -> torch.Tensor:
    """Weights that rise to the middle and fall after it, so that a tile's edge adds little to the
    sum even if tiles of a few cells overlap by most of their size."""
    places = torch.arange(side, dtype=torch.float32)
    from_edge = torch.minimum(places, side - 1 - places) + 0.5
    return from_edge / (side / 2)


def _times(lines: slice, factor: int) -> slice:
    return slice(lines.start * factor, lines.stop * factor)
