"""Bradley–Terry ratings: the strengths under which the votes are most probable.

A model beats another with the probability 1 / (1 + 10^((R_other − R) / 400)). A tie is half a win
of each, and the mean rating is 1000, as in arena-rank, LMArena's package.
"""

import math

import numpy as np
import numpy.typing as npt

from evaluation.score_rows import Floats

SCALE = 400 / math.log(10)
MEAN = 1000.0
_RIDGE = 1e-7
"""Keeps ratings finite when a model has won or lost all its votes. Otherwise it changes a rating by
less than 0.01."""
_MAX_STEP = 1.0
_MAX_STEPS = 200
_TOLERANCE = 1e-9


def fit_ratings(
    pairs: npt.NDArray[np.int64], scores: Floats, counts: Floats, num_models: int
) -> Floats:
    """The ratings for each of several sets of votes, by Newton's method.

    Args:
        pairs: [kinds of vote, 2], the numbers of the two models.
        scores: [kinds of vote], what the first of them gets.
        counts: [sets, kinds of vote], how many votes of each kind a set has.

    Returns:
        [sets, models].
    """
    design = np.zeros((len(pairs), num_models))
    design[np.arange(len(pairs)), pairs[:, 0]] = 1.0
    design[np.arange(len(pairs)), pairs[:, 1]] = -1.0
    weights = counts / counts.sum(axis=1, keepdims=True)
    ridge = _RIDGE * np.eye(num_models)
    strengths = np.zeros((len(counts), num_models))
    for _ in range(_MAX_STEPS):
        expected = 1 / (1 + np.exp(-strengths @ design.T))
        slope = (weights * (expected - scores)) @ design + _RIDGE * strengths
        bend = np.einsum("sk,km,kn->smn", weights * expected * (1 - expected), design, design)
        step = np.linalg.solve(bend + ridge, slope[..., None])[..., 0]
        # Far from its end Newton's method may leap too far.
        step = np.clip(step, -_MAX_STEP, _MAX_STEP)
        strengths -= step
        if np.abs(step).max() < _TOLERANCE:
            return MEAN + SCALE * strengths
    raise ArithmeticError("the ratings did not converge")
