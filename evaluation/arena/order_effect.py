"""What being shown first is worth to an answer."""

from collections.abc import Sequence

import numpy as np

from evaluation.arena.tally import Tally
from evaluation.arena.vote import Vote
from evaluation.interval import Interval, percentile_interval, wilson
from evaluation.resampling import bootstrap
from evaluation.score_rows import Floats


def order_effect(tally: Tally, *, seed: int) -> tuple[float, Interval] | None:
    """How much larger the share of points of the answer shown first is than a half.

    Only pairs of models that were shown in both orders count; the mean of both orders does not
    depend on which model is better. None if there is no such pair.
    """
    values = _effects(tally, tally.counts[None])
    if np.isnan(values[0]):
        return None
    resampled = bootstrap(
        tally.groups.sums(tally.rows), lambda sums: _effects(tally, sums), seed=seed
    )
    method = f"bootstrap of {tally.groups.num} prompts"
    return float(values[0]), percentile_interval(resampled[~np.isnan(resampled)], method)


def agreement(votes: Sequence[Vote]) -> tuple[int, int, Interval] | None:
    """How often a voter who saw two answers in both orders decided alike: how often, out of how
    many, and the interval of the share. None if nobody saw both orders."""
    found: dict[tuple[str, str, str, str | None], float] = {}
    for vote in votes:
        found[vote.prompt, vote.first, vote.second, vote.voter] = vote.score
    same = []
    for (prompt, first, second, voter), score in found.items():
        swapped = found.get((prompt, second, first, voter))
        if first < second and swapped is not None:
            same.append(score == 1 - swapped)
    if not same:
        return None
    return sum(same), len(same), wilson(sum(same), len(same))


def _effects(tally: Tally, counts: Floats) -> Floats:
    """The effect for each of several counts of votes; NaN without a pair shown in both orders."""
    total, weight = np.zeros(len(counts)), np.zeros(len(counts))
    for second in range(len(tally.models)):
        for first in range(second):
            share, num = _first_share(tally, counts, first, second)
            swapped_share, swapped_num = _first_share(tally, counts, second, first)
            both = np.where((num > 0) & (swapped_num > 0), num + swapped_num, 0.0)
            total += both * ((share + swapped_share) / 2 - 0.5)
            weight += both
    return np.where(weight > 0, total / np.maximum(weight, 1.0), np.nan)


def _first_share(tally: Tally, counts: Floats, first: int, second: int) -> tuple[Floats, Floats]:
    """The share of points that a model got when it was shown before another, and from how many
    votes."""
    is_pair = (tally.pairs == (first, second)).all(axis=1)
    num = counts[:, is_pair].sum(axis=1)
    points = counts[:, is_pair] @ tally.scores[is_pair]
    return points / np.maximum(num, 1.0), num
