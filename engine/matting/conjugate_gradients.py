"""Solves a matting system with pauses, so that a request can be cancelled and others can have their
turn."""

import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from engine.pictures.arrays import Doubles

TOLERANCE = 1e-7
"""The tolerance of the residual relative to the right-hand side."""
MAX_STEPS = 250
SLICE_S = 0.05
"""The time between two pauses, which does not change the result."""


def solve(
    matrix: Any,
    rhs: Doubles,
    precondition: Callable[[Doubles], Doubles],
    *,
    max_steps: int = MAX_STEPS,
) -> Generator[None, None, tuple[Doubles, bool]]:
    """Solve `matrix x = rhs`; returns `x` and whether it is within the tolerance. The method is
    that of flexible conjugate gradients (Notay 2000, "Flexible Conjugate Gradients").

    Args:
        matrix: symmetric and positive definite.
        precondition: multiplies a vector by roughly the inverse of `matrix`; it need not be quite
            symmetric.
    """
    x = np.zeros_like(rhs)
    residual = rhs.copy()
    enough = TOLERANCE * float(np.linalg.norm(rhs))
    if float(np.linalg.norm(residual)) <= enough:
        return x, True
    z = precondition(residual)
    direction = z.copy()
    rz = float(residual @ z)
    paused_s = time.perf_counter()
    for _ in range(max_steps):
        product = matrix @ direction
        step = rz / float(direction @ product)
        x += step * direction
        change = -step * product
        residual += change
        if float(np.linalg.norm(residual)) <= enough:
            return x, True
        z = precondition(residual)
        direction *= float(change @ z) / rz
        rz = float(residual @ z)
        direction += z
        if time.perf_counter() - paused_s > SLICE_S:
            yield
            paused_s = time.perf_counter()
    return x, False
