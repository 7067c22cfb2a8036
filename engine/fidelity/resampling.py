"""Bicubic resampling as linear operators that take a band of rows at a time.

Reduction is antialiased: the kernel grows with the factor. This is the method of Pillow, of
MATLAB's imresize and of torch with `antialias` (Keys 1981, a = -0.5), and the camera that most
training of upscalers assumes. Matrices are sparse, so the transposes for back-projection are exact.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from engine.fidelity.planes import Bytes, Planes, bands, planes_of

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

    def accumulate(self, total: Planes, band: Planes, first: int) -> None:
        """Add the contribution of `[B, W, C]` rows that begin at row `first` to the result `[h, w,
        C]`."""
        matrix = self._rows_transposed[first : first + len(band)]
        top, end = int(matrix.indices.min()), int(matrix.indices.max()) + 1
        narrow = _along_columns(self.columns, band)
        total[top:end] += _along_rows(matrix[:, top:end].T.tocsr(), narrow)

    def narrowed(self, band: Planes) -> Planes:
        """Resample any rows `[B, W, C]` to the result's width."""
        return _along_columns(self.columns, band)

    def rows_between(self, narrow: Planes, top: int, first: int, end: int) -> Planes:
        """Some rows of the result, from rows that begin at `top` and already have its width."""
        return _along_rows(self.rows[first:end, top : top + len(narrow)], narrow)

    def band(self, picture: Planes, first: int, end: int) -> Planes:
        """Some rows of the result, from the whole picture `[H, W, C]`."""
        return _rows_of(self.rows[first:end], self.columns, picture)

    def transposed_band(self, result: Planes, first: int, end: int) -> Planes:
        """Some rows of the transpose's result, from the whole `[h, w, C]`."""
        return _rows_of(self._rows_transposed[first:end], self._columns_transposed, result)


def shrunk(picture: Bytes, height: int, width: int) -> Planes:
    """A picture in another size, `[height, width, C]`; takes memory for a band and the result."""
    resampling = Resampling.between(picture.shape[:2], (height, width))
    total = np.zeros((height, width, picture.shape[2]), np.float32)
    for first, end in bands(*picture.shape[:2]):
        resampling.accumulate(total, planes_of(picture[first:end]), first)
    return total


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


def _rows_of(rows: Matrix, columns: Matrix, picture: Planes) -> Planes:
    top, end = int(rows.indices.min()), int(rows.indices.max()) + 1
    return _along_columns(columns, _along_rows(rows[:, top:end], picture[top:end]))


def _along_rows(matrix: Matrix, planes: Planes) -> Planes:
    result: Planes = matrix @ planes.reshape(len(planes), -1)
    return result.reshape(len(result), *planes.shape[1:])


def _along_columns(matrix: Matrix, planes: Planes) -> Planes:
    turned = np.ascontiguousarray(planes.transpose(1, 0, 2))
    return np.ascontiguousarray(_along_rows(matrix, turned).transpose(1, 0, 2))
