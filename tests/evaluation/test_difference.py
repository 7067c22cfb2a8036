"""Paired comparisons: against scipy, and against experiments."""

import random

import numpy as np
import pytest
from scipy import stats

from evaluation.difference import compare, items_needed, mcnemar, paired_shares_interval
from evaluation.resampling import Groups
from evaluation.score_rows import mean_rows, share_rows


def single(num):
    return Groups([None] * num)


def test_mcnemars_test_is_exact():
    for _ in range(100):
        only_first, only_second = random.randrange(40), random.randrange(40)
        if only_first + only_second == 0:
            assert mcnemar(0, 0) == 1.0
        else:
            theirs = stats.binomtest(only_first, only_first + only_second).pvalue
            assert mcnemar(only_first, only_second) == pytest.approx(theirs, rel=1e-9)


def test_shares_are_compared_by_the_items_that_differ():
    first = share_rows([1.0] * 10 + [0.0] * 5 + [1.0] * 1 + [0.0] * 4)
    second = share_rows([1.0] * 10 + [1.0] * 5 + [0.0] * 1 + [0.0] * 4)
    found = compare(first, second, single(20), seed=0)
    assert (found.first, found.second, found.difference) == pytest.approx((0.55, 0.75, 0.2))
    assert found.p_value == mcnemar(1, 5)
    assert found.test == "exact McNemar test, 6 items differ"
    assert found.interval.low < 0.2 < found.interval.high


@pytest.mark.parametrize("num", [9, 60])
def test_other_scores_are_compared_by_permutations(num):
    one, two = np.random.random(num), np.random.random(num) + 0.15
    found = compare(mean_rows(one), mean_rows(two), single(num), seed=random.randrange(999))
    theirs = stats.permutation_test(
        (two, one),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    is_exact = num == 9
    assert found.p_value == pytest.approx(theirs.pvalue, abs=1e-12 if is_exact else 0.03)
    assert f"{512 if is_exact else 10_001} permutations" in found.test


def test_groups_are_swapped_and_resampled_as_a_whole():
    one, two = np.random.random(12), np.random.random(12) + 0.3
    once = compare(mean_rows(one), mean_rows(two), single(12), seed=1)
    names = [str(i) for i in range(12) for _ in range(3)]
    thrice = compare(
        mean_rows(np.repeat(one, 3)), mean_rows(np.repeat(two, 3)), Groups(names), seed=1
    )
    assert thrice.p_value == pytest.approx(once.p_value)
    assert thrice.interval.low == pytest.approx(once.interval.low)
    assert thrice.items_needed == pytest.approx(3 * once.items_needed, abs=3)


def test_runs_that_agree_on_all_items_leave_some_doubt():
    same = share_rows([1.0, 0.0] * 10)
    found = compare(same, same, single(20), seed=0)
    assert (found.p_value, found.items_needed, found.difference) == (1.0, None, 0.0)
    assert found.interval.low < -0.05 and found.interval.high > 0.05


def test_the_interval_of_paired_shares_holds_the_truth_as_often_as_it_says():
    held, num = 0, 60
    for counts in np.random.multinomial(num, [0.5, 0.2, 0.08, 0.22], 2000):
        interval = paired_shares_interval(int(counts[1]), int(counts[2]), num)
        held += interval.low <= 0.08 - 0.2 <= interval.high
    assert 0.93 < held / 2000 < 0.98


def test_so_many_items_show_the_difference_four_times_in_five():
    true, spread = 0.2, 1.0
    num = items_needed(100, true, spread / 100**0.5)
    assert num == 197  # (1.960 + 0.842)² · 25 = 196.2
    draws = np.random.normal(true, spread, (4000, num))
    shown = np.abs(draws.mean(axis=1)) / (draws.std(axis=1, ddof=1) / num**0.5) > 1.972
    assert 0.77 < shown.mean() < 0.83


def test_the_detectable_difference_needs_the_items_that_there_are():
    one = np.random.random(80)
    two = one + np.random.normal(0.1, 0.3, 80)
    found = compare(mean_rows(one), mean_rows(two), single(80), seed=2)
    error = found.detectable / 2.8016
    assert error == pytest.approx((two - one).std() / 80**0.5, rel=0.1)
    assert items_needed(80, found.detectable, error) == pytest.approx(80, abs=1)
