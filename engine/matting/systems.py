"""The equations for alpha in a trimap's open band, from pymatting's Laplacians.

A Laplacian L describes how the alphas of neighbouring pixels are related; with the known pixels
inserted, `L_UU x = -L_UK alpha_K` remains for the unknown ones (U). Closed-form matting (Levin et
al. 2008, "A Closed-Form Solution to Natural Image Matting") and learning-based matting (Zheng and
Kambhamettu 2009, "Learning Based Digital Matting") sum L over windows of 3x3 pixels. Windows
without an unknown pixel add nothing to L_UU or L_UK, and the others may be summed in any order: so
memory depends on the band and not on the picture. KNN matting (Chen et al. 2013) pairs pixels of
similar colour anywhere in the picture, which is therefore cut to the band's surroundings.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from engine.contract.matte import MattingMethod
from engine.matting.arrays import Bools, Bytes, Doubles, strips
from engine.matting.pymatting_library import pymatting, silent
from engine.matting.trimap import Trimap

LEAST_SIDE = 5
"""The least side of a picture: windows have three pixels, and KNN matting needs twenty
neighbours."""
FACTOR_THRESHOLDS = (1e-4, 1e-2)
"""Numbers of a preconditioner's factor below this are left out. The first value is pymatting's."""
FACTOR_NUMBERS = 96
"""The most numbers of a factor per unknown pixel; at the first threshold most have 60 to 70."""
KNOWN_WEIGHT = 100.0
"""The weight with which KNN matting holds known pixels; pymatting's value."""
KNN_MARGIN = 24
"""The width in pixels around the band from which KNN matting takes colours."""

Laplacian = Callable[[Doubles, Bools], Any]
"""Makes a sparse [h w, h w] matrix of a picture [h, w, 3] from 0 to 1 and its known pixels."""


@dataclass(frozen=True, slots=True)
class System:
    """The equations `matrix x = rhs` with a preconditioner; the alpha of the unknown pixels, row by
    row, is `x[places]`."""

    matrix: Any
    rhs: Doubles
    precondition: Callable[[Doubles], Doubles]
    places: Any


def band_system(
    image: Bytes, trimap: Trimap, method: MattingMethod
) -> Generator[None, None, System]:
    """Make the equations for a picture [H, W, 3] of at least `LEAST_SIDE` pixels a side. Pauses so
    that others can have their turn."""
    if method is MattingMethod.KNN:
        return (yield from _knn_system(image, trimap))
    if method is MattingMethod.LEARNING_BASED:
        laplacian: Laplacian = _learning_based
    else:
        laplacian = _closed_form
    matrix, rhs = yield from _window_sums(image, trimap, laplacian)
    precondition = _preconditioner(matrix)
    yield
    return System(matrix, rhs, precondition, slice(None))


def _preconditioner(matrix: Any) -> Callable[[Doubles], Doubles]:
    """An incomplete Cholesky factor, a sparser one if that is too large, or else the diagonal."""
    most = FACTOR_NUMBERS * matrix.shape[0] + 1024
    for threshold in FACTOR_THRESHOLDS:
        with contextlib.suppress(ValueError), silent():
            factor: Callable[[Doubles], Doubles] = pymatting("ichol")(
                matrix, discard_threshold=threshold, max_nnz=most
            )
            return factor
    diagonal: Callable[[Doubles], Doubles] = pymatting("jacobi")(matrix)
    return diagonal


def _window_sums(
    image: Bytes, trimap: Trimap, laplacian: Laplacian
) -> Generator[None, None, tuple[Any, Doubles]]:
    """Sum up L_UU and -L_UK alpha_K. Each strip has the windows around the pixels of its rows."""
    is_unknown = trimap.is_unknown
    height, width = is_unknown.shape
    num_unknown = trimap.num_unknown
    number = np.full((height, width), -1, np.int32)
    number[is_unknown] = np.arange(num_unknown, dtype=np.int32)
    rhs = np.zeros(num_unknown)
    parts: list[tuple[Any, Any, Any]] = []
    for centres in strips(height - 2, width):
        rows = slice(centres.start, centres.stop + 2)
        columns = np.flatnonzero(is_unknown[rows].any(axis=0))
        if not columns.size:
            continue
        left, right = max(0, columns[0] - 2), min(width, columns[-1] + 3)
        left, right = min(left, width - 3), max(right, 3)
        area = (rows, slice(left, right))
        sums = laplacian(image[area] / 255.0, ~is_unknown[area])
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


def _closed_form(image: Doubles, is_known: Bools) -> Any:
    return pymatting("cf_laplacian")(image, is_known=is_known)


def _learning_based(image: Doubles, is_known: Bools) -> Any:
    return pymatting("lbdm_laplacian")(image)


def _knn_system(image: Bytes, trimap: Trimap) -> Generator[None, None, System]:
    """Make the equations as pymatting does: known pixels remain unknowns, held by a weight."""
    area = surroundings(trimap.is_unknown, KNN_MARGIN)
    laplacian = pymatting("knn_laplacian")(image[area] / 255.0)
    yield
    is_unknown = trimap.is_unknown[area]
    known = KNOWN_WEIGHT * ~is_unknown.ravel()
    matrix = (laplacian + scipy.sparse.diags(known)).tocsr()
    rhs = np.asarray(known * trimap.is_subject[area].ravel(), np.float64)
    yield
    places = np.flatnonzero(is_unknown.ravel())
    return System(matrix, rhs, pymatting("jacobi")(matrix), places)


def surroundings(region: Bools, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a region that is not empty, with a margin on each side."""
    sides = []
    for axis in (0, 1):
        inside = np.flatnonzero(region.any(axis=1 - axis))
        size = region.shape[axis]
        sides.append(slice(max(0, inside[0] - margin), min(size, inside[-1] + 1 + margin)))
    return sides[0], sides[1]
