"""The equations for alpha in a trimap's open band.

A Laplacian L describes how the alphas of neighbouring pixels are related; with the known pixels
inserted, `L_UU x = -L_UK alpha_K` remains for the unknown ones (U). Closed-form matting (Levin et
al. 2008, "A Closed-Form Solution to Natural Image Matting", eq. 12) sums L over windows of 3x3
pixels. Windows without an unknown pixel add nothing to L_UU or L_UK, so memory depends on the band
and not on the picture.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.lib.stride_tricks import sliding_window_view

from engine.matting.trimap import Trimap
from engine.pictures.arrays import Bytes, Doubles, bands

LEAST_SIDE = 5
"""The least side of a picture; smaller ones are padded, as windows have three pixels."""
EPSILON = 1e-7
"""The regularisation of a window's covariance, which matters where colours hardly differ."""
FACTOR_THRESHOLD = 1e-4
"""Numbers of a preconditioner's factor below this, relative to their column, are left out."""
FACTOR_FILL = 20
"""The most numbers of a factor for each number of the matrix. Factors have 5 to 8 of them; where
SuperLU is held to less, it leaves out so much that the solver takes a hundred times as long."""
Preconditioner = Callable[[Doubles], Doubles]
_SIDE = 3
_AREA = _SIDE * _SIDE


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
    """An incomplete LU factor, or the diagonal if there is none."""
    with contextlib.suppress(RuntimeError):  # a pivot is zero
        factor = scipy.sparse.linalg.spilu(
            matrix.tocsc(),
            drop_tol=FACTOR_THRESHOLD,
            fill_factor=FACTOR_FILL,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        precondition: Preconditioner = factor.solve
        return precondition
    inverse = 1.0 / matrix.diagonal()
    return lambda x: x * inverse


def _window_sums(image: Bytes, trimap: Trimap) -> Generator[None, None, tuple[Any, Doubles]]:
    """Sum up L_UU and -L_UK alpha_K, strip by strip."""
    height, width = trimap.is_unknown.shape
    num_unknown = trimap.num_unknown
    number = np.full((height, width), -1, np.int32)
    number[trimap.is_unknown] = np.arange(num_unknown, dtype=np.int32)
    shape = (num_unknown, num_unknown)
    rhs = np.zeros(num_unknown)
    parts: list[tuple[Any, Any, Any]] = []
    for centres in bands(height - 2, width):
        rows = slice(centres.start, centres.stop + 2)
        numbers = _windows(number[rows]).reshape(-1, _AREA)
        chosen = np.flatnonzero((numbers >= 0).any(axis=1))
        if not chosen.size:
            continue
        numbers = numbers[chosen]
        is_subject = _windows(trimap.is_subject[rows]).reshape(-1, _AREA)[chosen]
        sums = _laplacians(_windows(image[rows]).reshape(-1, 3, _AREA)[chosen] / 255.0)
        of_known = np.einsum("nij,nj->ni", sums, is_subject.astype(np.float64))
        is_unknown = numbers >= 0
        rhs -= np.bincount(numbers[is_unknown], of_known[is_unknown], num_unknown)
        pairs = is_unknown[:, :, None] & is_unknown[:, None, :]
        row = np.broadcast_to(numbers[:, :, None], pairs.shape)[pairs]
        column = np.broadcast_to(numbers[:, None, :], pairs.shape)[pairs]
        block = scipy.sparse.coo_matrix((sums[pairs], (row, column)), shape)
        block.sum_duplicates()
        parts.append((block.data, block.row, block.col))
        yield
    data, row, column = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    parts.clear()
    matrix = scipy.sparse.coo_matrix((data, (row, column)), shape).tocsr()
    yield
    return matrix, rhs


def _windows(array: Any) -> Any:
    """All windows of an array, in its last two dimensions."""
    return sliding_window_view(array, (_SIDE, _SIDE), axis=(0, 1))


def _laplacians(colours: Doubles) -> Doubles:
    """What windows [N, 3, 9] of colours add to the Laplacian [N, 9, 9]."""
    centred = colours - colours.mean(axis=2, keepdims=True)
    covariance = (centred @ centred.transpose(0, 2, 1) + EPSILON * np.eye(3)) / _AREA
    alike = centred.transpose(0, 2, 1) @ np.linalg.inv(covariance) @ centred
    return np.asarray(np.eye(_AREA) - (1.0 + alike) / _AREA)
