"""Intervals of scores."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evaluation.resampling import Groups, bootstrap
from evaluation.score_rows import Floats, ScoreRows

LEVEL = 0.95
"""How often such intervals hold the value that more items would lead to."""
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval, and how it was made."""

    low: float
    high: float
    method: str


def score_interval(score: ScoreRows, groups: Groups, *, seed: int) -> Interval:
    """The interval of a score: Wilson's for a share of independent items, otherwise by resampling
    groups of items."""
    if score.is_binary and groups.are_single:
        num = len(score.rows)
        return wilson(round(float(score.rows[:, 0].sum())), num)
    values = bootstrap(groups.sums(score.rows), score.values, seed=seed)
    kind = "items" if groups.are_single else "groups"
    return percentile_interval(values, f"bootstrap of {groups.num} {kind}")


def wilson(successes: int, num: int) -> Interval:
    """Wilson's score interval of a share (1927), which also works near 0 and 1."""
    share = successes / num
    middle = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == num else middle + half
    return Interval(low, high, "Wilson")


def percentile_interval(values: Floats, method: str) -> Interval:
    """The interval between percentiles of resampled values."""
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high), method)
