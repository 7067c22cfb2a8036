"""A large picture, or its latents, as tiles of equal size that overlap."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.tile_places import spread

Window = tuple[slice, slice]
"""Rows and columns."""

_OVERLAP_SHARE = 4
"""Of a tile's side, a quarter at least is shared with the next one."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the tiles of a picture are, and how they are merged.

    Attributes:
        height, width: of the picture.
        windows: of the tiles, row by row; all of one size, spread evenly.
        weights: `[h, w]` of a tile, falling off towards its edges, never to zero.
    """

    height: int
    width: int
    windows: tuple[Window, ...]
    weights: torch.Tensor

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.weights.shape
        return height, width

    def merged(self, tiles: Iterable[torch.Tensor]) -> torch.Tensor:
        """Tiles `[N, C, h, w]` in the order of the windows as one picture `[N, C, H, W]`, their
        weighted mean where they overlap."""
        total: torch.Tensor | None = None
        for window, tile in zip(self.windows, tiles, strict=True):
            if total is None:
                total = tile.new_zeros((*tile.shape[:2], self.height, self.width))
            self.add(total, window, tile)
        assert total is not None
        return total / self.total_weights(total)

    def add(self, total: torch.Tensor, window: Window, tile: torch.Tensor) -> None:
        """A tile, weighted, onto the sum `[N, C, H, W]` of all."""
        total[(..., *window)] += tile * self.weights.to(tile.device)

    def total_weights(self, like: torch.Tensor) -> torch.Tensor:
        """What a sum of all tiles is to be divided by: `[H, W]`."""
        total = torch.zeros((self.height, self.width), device=like.device)
        for window in self.windows:
            total[window] += self.weights.to(like.device)
        return total

    def scaled(self, factor: int) -> "Tiling":
        """The same tiles of a picture so many times larger."""
        return _tiling(
            self.height * factor,
            self.width * factor,
            tuple(
                (_times(rows, factor), _times(columns, factor)) for rows, columns in self.windows
            ),
        )


def tile(height: int, width: int, tile_height: int, tile_width: int, unit: int = 1) -> Tiling:
    """Tiles of that size, or of the picture's where that is smaller.

    Args:
        unit: of which all numbers, and all places of tiles, are multiples.
    """
    rows = _spread(height, min(height, tile_height), unit)
    columns = _spread(width, min(width, tile_width), unit)
    return _tiling(height, width, tuple((row, column) for row in rows for column in columns))


def _spread(length: int, side: int, unit: int) -> list[slice]:
    """Tiles along a side, as few as overlap enough."""
    overlap = min(side // unit - 1, -(-side // unit // _OVERLAP_SHARE))
    starts = spread(length // unit, side // unit, overlap)
    return [slice(start * unit, start * unit + side) for start in starts]


def _tiling(height: int, width: int, windows: tuple[Window, ...]) -> Tiling:
    rows, columns = windows[0]
    weights = _ramp(rows.stop)[:, None] * _ramp(columns.stop)[None, :]
    return Tiling(height, width, windows, weights)


def _ramp(side: int) -> torch.Tensor:
    """Rises to the middle and falls behind it: however much tiles of a few cells overlap, what an
    edge adds is a small part of what is there."""
    places = torch.arange(side, dtype=torch.float32)
    from_edge = torch.minimum(places, side - 1 - places) + 0.5
    return from_edge / (side / 2)


def _times(lines: slice, factor: int) -> slice:
    return slice(lines.start * factor, lines.stop * factor)
