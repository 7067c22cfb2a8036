"""Resizes the network's rows as they come to another size: bicubic, and smoothed when shrinking,
like Pillow."""

import numpy as np
import torch
from torch import Tensor

from engine.fidelity.planes import Planes
from engine.fidelity.resampling import Matrix, Resampling


class RowResampler:
    """Resizes an image whose rows come from the top down.

    Args:
        given, wanted: the sizes as (width, height).
    """

    def __init__(self, given: tuple[int, int], wanted: tuple[int, int]) -> None:
        self._resampling = (
            None if given == wanted else Resampling.between(given[::-1], wanted[::-1])
        )
        self._width, self._height = wanted
        self._next = 0
        self._kept: Planes | None = None
        self._first_kept = 0

    def add(self, rows: Tensor) -> Tensor:
        """Add the next rows, `[channels, rows, width]`; returns the rows of the result that are
        finished now, possibly none."""
        if self._resampling is None:
            return rows
        if rows.shape[1] == 0:
            return rows.new_empty(rows.shape[0], 0, self._width)
        made = self._add(self._resampling, rows.permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(made).permute(2, 0, 1)

    def _add(self, resampling: Resampling, rows: Planes) -> Planes:
        narrow = resampling.narrowed(rows)
        kept = narrow if self._kept is None else np.concatenate([self._kept, narrow])
        first, stop = self._next, self._next
        num_known = self._first_kept + len(kept)
        while stop < self._height and _sources(resampling.rows, stop)[1] <= num_known:
            stop += 1
        made = resampling.rows_between(kept, self._first_kept, first, stop)
        self._next = stop
        if stop < self._height:
            unused = max(0, _sources(resampling.rows, stop)[0] - self._first_kept)
            kept = kept[unused:].copy()
            self._first_kept += unused
        self._kept = kept
        return made


def _sources(matrix: Matrix, row: int) -> tuple[int, int]:
    """The first row from which a row of the result is made, and the end of these rows."""
    places = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return int(places.min()), int(places.max()) + 1
