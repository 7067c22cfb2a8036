"""Intervals of scores: against scipy, and with items that depend on each other."""

import random

import numpy as np
import pytest
from scipy import stats

from evaluation.interval import score_interval, wilson
from evaluation.resampling import Groups, bootstrap
from evaluation.score_rows import mean_rows, share_rows


def ends(interval):
    return interval.low, interval.high


def test_shares_have_wilsons_interval():
    for _ in range(50):
        num = random.randint(1, 200)
        successes = random.choice([0, num, random.randint(0, num)])
        theirs = stats.binomtest(successes, num).proportion_ci(method="wilson")
        assert ends(wilson(successes, num)) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_bootstrap_is_that_of_scipy():
    scores = np.random.beta(2, 5, 150)
    ours = score_interval(mean_rows(scores), Groups([None] * 150), seed=random.randrange(999))
    theirs = stats.bootstrap((scores,), np.mean, method="percentile").confidence_interval
    width = theirs.high - theirs.low
    assert ends(ours) == pytest.approx((theirs.low, theirs.high), abs=0.12 * width)


def test_repeated_items_of_a_group_add_no_certainty():
    scores, times = np.random.random(40), random.randint(2, 5)
    once = score_interval(mean_rows(scores), Groups([None] * 40), seed=3)
    names = [str(i) for i in range(40) for _ in range(times)]
    grouped = score_interval(mean_rows(np.repeat(scores, times)), Groups(names), seed=3)
    ungrouped = score_interval(
        mean_rows(np.repeat(scores, times)), Groups([None] * len(names)), seed=3
    )
    assert ends(grouped) == pytest.approx(ends(once))
    assert ungrouped.high - ungrouped.low < 0.85 * (once.high - once.low)


def test_shares_of_groups_are_resampled():
    zeros_and_ones = share_rows([1.0, 1.0, 0.0, 0.0])
    assert score_interval(zeros_and_ones, Groups([None] * 4), seed=0).method == "Wilson"
    grouped = score_interval(zeros_and_ones, Groups(["a", "a", "b", "b"]), seed=0)
    assert grouped.method == "bootstrap of 2 groups"
    assert ends(grouped) == (0.0, 1.0)


def test_groups_and_single_items_are_told_apart():
    groups = Groups(["x", None, "x", None, "item"])
    assert (groups.num, groups.are_single) == (4, False)
    assert [list(members) for members in groups.members] == [[0, 2], [1], [3], [4]]
    assert groups.sums(np.arange(5.0)[:, None])[:, 0].tolist() == [2, 1, 3, 4]


def test_a_seed_repeats_the_resamples():
    rows = np.random.random((30, 2))
    first, again, other = (bootstrap(rows, lambda sums: sums[:, 0], seed=s) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
