"""Solves a matting system, with pauses.

pymatting's own solver (`pymatting.cg`) has none: a request could not be cancelled, nor another one
have its turn, before it is done. The steps are the same.
"""

import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from engine.matting.arrays import Doubles

TOLERANCE = 1e-7
"""Of the residual, beside the right-hand side: pymatting's."""
MAX_STEPS = 1000
SLICE_S = 0.05
"""Between two pauses; what comes out does not depend on it."""


def solve(
    matrix: Any,
    rhs: Doubles,
    precondition: Callable[[Doubles], Doubles],
    *,
    max_steps: int = MAX_STEPS,
) -> Generator[None, None, tuple[Doubles, bool]]:
    """`x` with `matrix x = rhs`, and whether it is within the tolerance: the preconditioned method
    of conjugate gradients (Hestenes and Stiefel 1952).

    Args:
        matrix: symmetric and positive definite.
        precondition: what multiplies by about the inverse of `matrix`.
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
        residual -= step * product
        if float(np.linalg.norm(residual)) <= enough:
            return x, True
        z = precondition(residual)
        before, rz = rz, float(residual @ z)
        direction *= rz / before
        direction += z
        if time.perf_counter() - paused_s > SLICE_S:
            yield
            paused_s = time.perf_counter()
    return x, False
