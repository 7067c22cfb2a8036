"""Merges tiles from the top down; rows that no further tile touches are finished."""

import torch
from torch import Tensor

from engine.upscaling.tiling import Side


class Bands:
    """A result in progress, of which only one row of tiles is in memory.

    Args:
        across, down: the positions of the tiles.
    """

    def __init__(self, across: Side, down: Side, channels: int, scale: int) -> None:
        self._across, self._down, self._scale = across, down, scale
        self._sum = torch.zeros(channels, down.tile * scale, across.length * scale)

    def add(self, number: int, tile: Tensor) -> Tensor | None:
        """Add the next tile, `[channels, tile, tile]` in the result's pixels, row by row.

        Returns:
            The rows that are now finished, `[channels, rows, width]`, if any.
        """
        row, column = divmod(number, len(self._across.starts))
        start = self._across.starts[column] * self._scale
        share = torch.from_numpy(self._down.shares[row])[:, None] * torch.from_numpy(
            self._across.shares[column]
        )
        self._sum[:, :, start : start + tile.shape[2]].addcmul_(tile, share)
        if column + 1 < len(self._across.starts):
            return None
        return self._finish(row)

    def _finish(self, row: int) -> Tensor:
        starts = self._down.starts
        if row + 1 == len(starts):
            return self._sum
        num_rows = (starts[row + 1] - starts[row]) * self._scale
        finished = self._sum[:, :num_rows].clone()
        left = self._sum.shape[1] - num_rows
        self._sum[:, :left] = self._sum[:, num_rows:].clone()
        self._sum[:, left:] = 0
        return finished
