"""Bring a result back to what its input says, and leave the rest of it as it is.

The error of the shrunk result is spread over the result by the transpose of the shrinking, again
and again (back-projection, Irani and Peleg 1991). With D for the shrinking and y for the input,
`x ← x + t·Dᵀ(y - D·x)` is gradient descent on `‖y - D·x‖²`: with t below 2/‖D·Dᵀ‖ the error falls
in every iteration. All of them happen at the input's size, as what they add up to is Dᵀz for some
z of that size.
"""

import numpy as np

from engine.fidelity.planes import Bytes, Planes, bands, bytes_of, planes_of
from engine.fidelity.resampling import Matrix, Resampling, shrunk

NUM_ITERATIONS = 10
"""Of the finest errors about a hundredth is left by then. An even number, so that what is left has
the sign of the error, and taking back a larger share of it leaves less."""
_STEP = 1.8
"""In units of 1/‖D·Dᵀ‖."""


def back_project(result: Bytes, original: Bytes, fidelity: float) -> None:
    """Take the result's contradictions to the original back, in place.

    Detail finer than the original's pixels stays, unless a level would leave 0 to 255.

    Args:
        result, original: `[H, W, C]` and `[h, w, C]` of equal C.
        fidelity: share of the error to take back, 0 to 1.
    """
    size, small = result.shape[:2], original.shape[:2]
    shrink = Resampling.between(size, small)
    error = planes_of(original) - shrunk(result, *small)
    spread = fidelity * correction(error, shrink, NUM_ITERATIONS)
    for first, end in bands(*size):
        rows = result[first:end]
        planes = planes_of(rows) + shrink.transposed_band(spread, first, end)
        result[first:end] = bytes_of(planes, rows)


def correction(error: Planes, shrink: Resampling, num_iterations: int) -> Planes:
    """z of the module's text, `[h, w, C]`.

    Args:
        error: y - D·x, `[h, w, C]`.
    """
    rows: Matrix = (shrink.rows @ shrink.rows.T).tocsr()
    columns: Matrix = (shrink.columns @ shrink.columns.T).tocsr()
    there_and_back = Resampling(rows, columns)
    step = _STEP / (_norm_bound(rows) * _norm_bound(columns))
    total = np.zeros_like(error)
    for _ in range(num_iterations):
        total += step * (error - there_and_back.band(total, 0, len(error)))
    return total


def _norm_bound(matrix: Matrix) -> float:
    """Of a symmetric matrix: no eigenvalue is above the largest sum of a line (Gershgorin)."""
    return float(abs(matrix).sum(axis=1).max())
