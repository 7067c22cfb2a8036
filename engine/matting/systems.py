"""The equations for alpha in a trimap's open band, from pymatting's closed-form Laplacian.

A Laplacian L describes how the alphas of neighbouring pixels are related; with the known pixels
inserted, `L_UU x = -L_UK alpha_K` remains for the unknown ones (U). Closed-form matting (Levin et
al. 2008, "A Closed-Form Solution to Natural Image Matting") sums L over windows of 3x3 pixels.
Windows without an unknown pixel add nothing to L_UU or L_UK, and the others may be summed in any
order: so memory depends on the band and not on the picture.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import scipy.sparse

from engine.matting.pymatting_library import pymatting, silent
from engine.matting.trimap import Trimap
from engine.pictures.arrays import Bytes, Doubles, bands

LEAST_SIDE = 5
"""The least side of a picture; smaller ones are padded, as windows have three pixels."""
FACTOR_THRESHOLDS = (1e-4, 1e-2)
"""Numbers of a preconditioner's factor below this are left out. The first value is pymatting's."""
FACTOR_NUMBERS = 96
"""The most numbers of a factor per unknown pixel; at the first threshold most have 60 to 70."""
Preconditioner = Callable[[Doubles], Doubles]


def band_system(
    image: Bytes, trimap: Trimap
) -> Generator[None, None, tuple[Any, Doubles, Preconditioner]]:
    """Make the equations `matrix x = rhs`, where x is the alpha of the unknown pixels, row by row,
    and a preconditioner. The picture [H, W, 3] has at least `LEAST_SIDE` pixels a side. Pauses so
    that others can have their turn."""
    matrix, rhs = yield from _window_sums(image, trimap)
    precondition = _preconditioner(matrix)
    yield
    return matrix, rhs, precondition


def _preconditioner(matrix: Any) -> Preconditioner:
    """An incomplete Cholesky factor, a sparser one if that is too large, or else the diagonal."""
    most = FACTOR_NUMBERS * matrix.shape[0] + 1024
    for threshold in FACTOR_THRESHOLDS:
        with contextlib.suppress(ValueError), silent():
            factor: Preconditioner = pymatting("ichol")(
                matrix, discard_threshold=threshold, max_nnz=most
            )
            return factor
    inverse = 1.0 / matrix.diagonal()
    return lambda x: x * inverse


def _window_sums(image: Bytes, trimap: Trimap) -> Generator[None, None, tuple[Any, Doubles]]:
    """Sum up L_UU and -L_UK alpha_K. Each strip has the windows around the pixels of its rows."""
    is_unknown = trimap.is_unknown
    height, width = is_unknown.shape
    num_unknown = trimap.num_unknown
    number = np.full((height, width), -1, np.int32)
    number[is_unknown] = np.arange(num_unknown, dtype=np.int32)
    rhs = np.zeros(num_unknown)
    parts: list[tuple[Any, Any, Any]] = []
    for centres in bands(height - 2, width):
        rows = slice(centres.start, centres.stop + 2)
        columns = np.flatnonzero(is_unknown[rows].any(axis=0))
        if not columns.size:
            continue
        left, right = max(0, columns[0] - 2), min(width, columns[-1] + 3)
        left, right = min(left, width - 3), max(right, 3)
        area = (rows, slice(left, right))
        sums = pymatting("cf_laplacian")(image[area] / 255.0, is_known=~is_unknown[area])
        numbers = number[area].ravel()
        unknown = np.flatnonzero(numbers >= 0)
        of_unknown = sums[unknown]
        rhs[numbers[unknown]] -= of_unknown @ trimap.is_subject[area].ravel().astype(np.float64)
        block = of_unknown[:, unknown].tocoo()
        block.eliminate_zeros()
        parts.append((block.data, numbers[unknown[block.row]], numbers[unknown[block.col]]))
        yield
    data, row, column = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    parts.clear()
    shape = (num_unknown, num_unknown)
    matrix = scipy.sparse.coo_matrix((data, (row, column)), shape).tocsr()
    yield
    return matrix, rhs
