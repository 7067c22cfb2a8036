"""The difference between two runs over the same items."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evaluation.interval import Interval, Z, percentile_interval
from evaluation.resampling import Groups, bootstrap, swaps
from evaluation.score_rows import Floats, ScoreRows

POWER = 0.8
_Z_POWER = NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired comparison of one score.

    Attributes:
        first, second: the scores of the two runs.
        difference: the second's score minus the first's.
        p_value: how probable a difference at least as large is if both runs are equally good.
        test: how that was found.
        items_needed: so many items would show a true difference of this size, at the level of 5 %,
            in 80 % of all experiments; None if no difference was seen.
        detectable: the smallest true difference that this many items show as often.
    """

    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    test: str
    items_needed: int | None
    detectable: float


def compare(first: ScoreRows, second: ScoreRows, groups: Groups, *, seed: int) -> Difference:
    """Compare the scores of two runs; row i of both belongs to the same item."""
    width = first.rows.shape[1]

    def differences(sums: Floats) -> Floats:
        return second.values(sums[:, width:]) - first.values(sums[:, :width])

    pairs = groups.sums(np.concatenate([first.rows, second.rows], axis=1))
    difference = second.value - first.value
    if first.is_binary and second.is_binary and groups.are_single:
        only_first, only_second = _discordant(first, second)
        interval = paired_shares_interval(only_first, only_second, len(first.rows))
        p_value = mcnemar(only_first, only_second)
        test = f"exact McNemar test, {only_first + only_second} items differ"
        # Resamples of runs that agree on all items would show no doubt at all.
        error = (interval.high - interval.low) / (2 * Z)
    else:
        kind = "items" if groups.are_single else "groups"
        resampled = bootstrap(pairs, differences, seed=seed)
        error = float(resampled.std(ddof=1))
        interval = percentile_interval(resampled, f"paired bootstrap of {groups.num} {kind}")
        p_value, ways = _permutation_test(first, second, groups, seed=seed)
        test = f"paired permutation test of {groups.num} {kind}, {ways}"
    return Difference(
        first=first.value,
        second=second.value,
        difference=difference,
        interval=interval,
        p_value=p_value,
        test=test,
        items_needed=items_needed(len(first.rows), difference, error),
        detectable=(Z + _Z_POWER) * error,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that right answers of just one run are evenly divided.

    Args:
        only_first, only_second: how many items only this run answered correctly.
    """
    num = only_first + only_second
    tail = sum(math.comb(num, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << num))


def paired_shares_interval(only_first: int, only_second: int, num: int) -> Interval:
    """The interval of a difference of two shares of the same items.

    Wald's, with half an item added to each of the four counts (Agresti and Min, Statistics in
    Medicine 24, 2005): it does not shrink to nothing when both runs agree on all items.
    """
    total = num + 2
    first, second = (only_first + 0.5) / total, (only_second + 0.5) / total
    half = Z * math.sqrt((first + second - (second - first) ** 2) / total)
    middle = second - first
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(low, high, "Agresti and Min")


def items_needed(num: int, difference: float, error: float) -> int | None:
    """How many items would show this difference with the power of 80 %.

    Args:
        num: the items that were compared.
        error: the standard error of the difference with these items.
    """
    if difference == 0 or error == 0:
        return None
    return max(2, math.ceil(num * ((Z + _Z_POWER) * error / difference) ** 2))


def _discordant(first: ScoreRows, second: ScoreRows) -> tuple[int, int]:
    """How many items only the first, and only the second, answered correctly."""
    change = second.rows[:, 0] - first.rows[:, 0]
    return int((change < 0).sum()), int((change > 0).sum())


def _permutation_test(
    first: ScoreRows, second: ScoreRows, groups: Groups, *, seed: int
) -> tuple[float, str]:
    """The p-value of the difference when the runs of each group are swapped at random, and how
    many ways of swapping were tried."""
    change = groups.sums(second.rows - first.rows)
    sums = [run.rows.sum(axis=0) for run in (first, second)]
    found = []
    for swap in swaps(groups.num, seed=seed):
        moved = swap @ change
        found.append(second.values(sums[1] - moved) - first.values(sums[0] + moved))
    differences = np.abs(np.concatenate(found))
    # Sums in another order differ by rounding.
    is_as_large = differences >= differences[0] * (1 - 1e-9) - 1e-12
    return float(is_as_large.mean()), f"{len(differences)} permutations"
