"""Bicubic resampling as linear operators that take a band of rows at a time.

Reduction is antialiased: the kernel grows with the factor. This is the method of Pillow, of
MATLAB's imresize and of torch with `antialias` (Keys 1981, a = -0.5), and the camera that most
training of upscalers assumes. Matrices are sparse, so the transposes for back-projection are exact.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from engine.pictures.alpha import premultiplied
from engine.pictures.arrays import Bytes, Floats, bands

Matrix: TypeAlias = sparse.csr_array
"""An fp32 matrix with one row per output line; each row sums to 1."""

_CUBIC_REACH = 2.0
_TRIANGLE_REACH = 1.0


class Resampling:
    """Resamples pictures from one size to another.

    Args:
        rows: `[after, before]`, applied to every column of pixels.
        columns: the same for every row of pixels.
    """

    def __init__(self, rows: Matrix, columns: Matrix) -> None:
        self.rows, self.columns = rows, columns
        self._rows_transposed: Matrix = rows.T.tocsr()
        self._columns_transposed: Matrix = columns.T.tocsr()

    @classmethod
    def between(
        cls, before: tuple[int, ...], after: tuple[int, ...], *, smooth: bool = False
    ) -> "Resampling":
        """Make the resampling from one height and width to another.

        Args:
            smooth: use a triangle instead of the cubic kernel; it blurs more and never undershoots.
        """
        rows, columns = (
            kernel_matrix(*sides, smooth=smooth) for sides in zip(before, after, strict=True)
        )
        return cls(rows, columns)

    def whole(self, picture: Bytes) -> Floats:
        """The result `[h, w, C]`; takes memory for a band and the result."""
        total = np.zeros((self.rows.shape[0], self.columns.shape[0], picture.shape[2]), np.float32)
        for rows in bands(*picture.shape[:2]):
            self.accumulate(total, premultiplied(picture[rows]), rows.start)
        return total

    def accumulate(self, total: Floats, band: Floats, first: int) -> None:
        """Add the contribution of `[B, W, C]` rows that begin at row `first` to the result `[h, w,
        C]`."""
        matrix = self._rows_transposed[first : first + len(band)]
        top, end = int(matrix.indices.min()), int(matrix.indices.max()) + 1
        narrow = _along_columns(self.columns, band)
        total[top:end] += _along_rows(matrix[:, top:end].T.tocsr(), narrow)

    def band(self, picture: Floats, rows: slice) -> Floats:
        """Some rows of the result, from the whole picture `[H, W, C]`."""
        return _rows_of(self.rows[rows], self.columns, picture)

    def transposed_band(self, result: Floats, rows: slice) -> Floats:
        """Some rows of the transpose's result, from the whole `[h, w, C]`."""
        return _rows_of(self._rows_transposed[rows], self._columns_transposed, result)


class RowResampler:
    """Resizes a picture whose rows come from the top down.

    Args:
        before, after: the sizes as (height, width).
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        self._resampling = Resampling.between(before, after)
        self._height, self._width = after
        self._next = 0
        self._kept: Floats | None = None
        self._first_kept = 0

    def add(self, rows: Floats) -> Floats:
        """Add the next rows `[B, W, C]`; returns the rows of the result that are finished now,
        possibly none."""
        if not len(rows):
            return np.empty((0, self._width, rows.shape[2]), np.float32)
        narrow = _along_columns(self._resampling.columns, rows)
        kept = narrow if self._kept is None else np.concatenate([self._kept, narrow])
        first, num_known = self._next, self._first_kept + len(kept)
        while self._next < self._height and self._sources(self._next)[1] <= num_known:
            self._next += 1
        matrix = self._resampling.rows[first : self._next, self._first_kept : num_known]
        if self._next < self._height:
            unused = max(0, self._sources(self._next)[0] - self._first_kept)
            self._kept = kept[unused:].copy()
            self._first_kept += unused
        return _along_rows(matrix, kept)

    def _sources(self, row: int) -> tuple[int, int]:
        """The first row from which a row of the result is made, and the end of these rows."""
        matrix = self._resampling.rows
        places = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
        return int(places.min()), int(places.max()) + 1


def kernel_matrix(before: int, after: int, *, smooth: bool = False) -> Matrix:
    """The matrix `[after, before]`, in which each output sample is a weighted mean of inputs around
    it, at edges of those that exist."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = (_TRIANGLE_REACH if smooth else _CUBIC_REACH) * stretch
    centres = (np.arange(after) + 0.5) * scale
    firsts = np.maximum(np.floor(centres - reach + 0.5), 0).astype(np.int64)
    ends = np.minimum(np.floor(centres + reach + 0.5), before).astype(np.int64)
    places = firsts[:, None] + np.arange(int((ends - firsts).max()))
    distances = np.abs(places + 0.5 - centres[:, None]) / stretch
    weights = _triangle(distances) if smooth else _cubic(distances)
    weights[places >= ends[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    lines = np.broadcast_to(np.arange(after)[:, None], places.shape)
    kept = weights != 0
    entries = (weights[kept].astype(np.float32), (lines[kept], places[kept]))
    return sparse.csr_array(entries, shape=(after, before))


def _cubic(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return np.where(distances < 1, near, np.where(distances < _CUBIC_REACH, far, 0))


def _triangle(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(0, 1 - distances)


def _rows_of(rows: Matrix, columns: Matrix, picture: Floats) -> Floats:
    top, end = int(rows.indices.min()), int(rows.indices.max()) + 1
    return _along_columns(columns, _along_rows(rows[:, top:end], picture[top:end]))


def _along_rows(matrix: Matrix, planes: Floats) -> Floats:
    result: Floats = matrix @ planes.reshape(len(planes), -1)
    return result.reshape(len(result), *planes.shape[1:])


def _along_columns(matrix: Matrix, planes: Floats) -> Floats:
    turned = np.ascontiguousarray(planes.transpose(1, 0, 2))
    return np.ascontiguousarray(_along_rows(matrix, turned).transpose(1, 0, 2))
