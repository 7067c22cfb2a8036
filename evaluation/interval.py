"""Intervals of scores."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq

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


def auroc_interval(auroc: float, num: int, num_others: int) -> Interval:
    """The interval of an area under the ROC curve, which also works near 0 and 1: Newcombe's method
    5 (Statistics in Medicine 25, 2006), by the variance that a true area would have."""
    typical = (num + num_others) / 2 - 1

    def beyond(area: float) -> float:
        spread = 1 + typical * ((1 - area) / (2 - area) + area / (1 + area))
        return float((auroc - area) ** 2 - Z**2 * area * (1 - area) * spread / (num * num_others))

    near = 1e-9  # where the variance of a true area of 0 or 1 vanishes, there is another root
    low = 0.0 if auroc < near else float(brentq(beyond, 0, min(auroc, 1 - near)))
    high = 1.0 if auroc > 1 - near else float(brentq(beyond, max(auroc, near), 1))
    return Interval(low, high, "Newcombe")


def percentile_interval(values: Floats, method: str) -> Interval:
    """The interval between percentiles of resampled values."""
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high), method)
