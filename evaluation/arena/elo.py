"""Elo ratings: updated after each vote, so that they depend on the order of the votes.

They are means over random orders here. Bradley–Terry ratings say the same without that noise.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluation.arena.bradley_terry import MEAN, SCALE
from evaluation.score_rows import Floats

STEP = 16.0
"""K: what a win against an equal changes is half of this."""


def elo_ratings(
    pairs: npt.NDArray[np.int64],
    scores: Floats,
    orders: Sequence[npt.NDArray[np.int64]],
    num_models: int,
) -> Floats:
    """The ratings after the votes of each order.

    Args:
        pairs: [votes, 2], the numbers of the two models.
        scores: [votes], what the first of them gets.
        orders: numbers of votes; a vote may be missing or occur again.

    Returns:
        [orders, models].
    """
    longest = max(map(len, orders))
    padded = np.full((len(orders), longest), -1)
    for row, order in zip(padded, orders, strict=True):
        row[: len(order)] = order
    ratings = np.full((len(orders), num_models), MEAN)
    rows = np.arange(len(orders))
    for votes in padded.T:
        (first, second), is_vote = pairs[votes].T, votes >= 0
        ahead = ratings[rows, first] - ratings[rows, second]
        change = STEP * is_vote * (scores[votes] - 1 / (1 + np.exp(-ahead / SCALE)))
        ratings[rows, first] += change
        ratings[rows, second] -= change
    return ratings
