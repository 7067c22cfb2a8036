"""Removes a result's contradictions to its input, and leaves the rest of it unchanged.

The error of the reduced result is spread over the result by the transpose of the reduction, several
times (back-projection, Irani and Peleg 1991). With D for the reduction and y for the input, `x ← x
+ t·Dᵀ(y - D·x)` is gradient descent on `‖y - D·x‖²`: with t below 2/‖D·Dᵀ‖ the error falls in every
iteration. All iterations run at the input's size, because their sum is Dᵀz for some z of that size.
"""

import numpy as np

from engine.pictures.alpha import premultiplied, straight
from engine.pictures.arrays import Bytes, Floats, bands
from engine.pictures.resampling import Matrix, Resampling

NUM_ITERATIONS = 10
"""The number of iterations, after which about a hundredth of the finest errors is left. It is even,
so that the rest has the sign of the error, and removing a larger share of the error leaves less."""
_STEP = 1.8
"""The step size in units of 1/‖D·Dᵀ‖."""


def back_project(result: Bytes, original: Bytes, fidelity: float) -> None:
    """Remove the result's contradictions to the original, in place.

    Detail finer than the original's pixels stays, unless a level would leave 0 to 255.

    Args:
        result, original: `[H, W, C]` and `[h, w, C]` of equal C.
        fidelity: the share of the error to remove, 0 to 1.
    """
    size = result.shape[:2]
    shrink = Resampling.between(size, original.shape[:2])
    error = premultiplied(original) - shrink.whole(result)
    spread = fidelity * correction(error, shrink, NUM_ITERATIONS)
    for rows in bands(*size):
        planes = premultiplied(result[rows]) + shrink.transposed_band(spread, rows)
        result[rows] = straight(planes, result[rows])


def correction(error: Floats, shrink: Resampling, num_iterations: int) -> Floats:
    """The correction `[h, w, C]`, which is z in the module's description.

    Args:
        error: y - D·x, `[h, w, C]`.
    """
    rows: Matrix = (shrink.rows @ shrink.rows.T).tocsr()
    columns: Matrix = (shrink.columns @ shrink.columns.T).tocsr()
    there_and_back = Resampling(rows, columns)
    step = _STEP / (_norm_bound(rows) * _norm_bound(columns))
    total = np.zeros_like(error)
    for _ in range(num_iterations):
        total += step * (error - there_and_back.band(total, slice(None)))
    return total


def _norm_bound(matrix: Matrix) -> float:
    """An upper bound of a symmetric matrix's eigenvalues: the largest sum of a row (Gershgorin)."""
    return float(abs(matrix).sum(axis=1).max())
