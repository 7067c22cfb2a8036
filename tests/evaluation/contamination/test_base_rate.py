"""Scores of items against a base rate: against scipy, and against experiments."""

import random

import numpy as np
import pytest
from scipy import stats

from evaluation.contamination.base_rate import from_paraphrases, from_unseen
from evaluation.interval import auroc_interval
from evaluation.resampling import Groups


def single(values):
    return Groups([None] * len(values))


def separation(scores, unseen):
    seed = random.randrange(999)
    return from_unseen(scores, unseen, single(scores), single(unseen), seed=seed)


def test_ranks_are_those_of_mann_and_whitney():
    scores = np.random.normal(0.4, 1, 40).round(1)  # with ties
    unseen = np.random.normal(0, 1, 60).round(1)
    found = separation(scores, unseen)
    theirs = stats.mannwhitneyu(scores, unseen, alternative="greater")
    assert found.auroc == pytest.approx(theirs.statistic / (40 * 60))
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert separation(unseen, scores).p_value == pytest.approx(1 - theirs.pvalue, abs=0.03)


def test_groups_count_once():
    scores, unseen = np.random.normal(0.7, 1, 12), np.random.normal(0, 1, 15)
    once = separation(scores, unseen)
    groups = [Groups([str(i) for i in range(num) for _ in range(5)]) for num in (12, 15)]
    repeated = from_unseen(np.repeat(scores, 5), np.repeat(unseen, 5), *groups, seed=1)
    assert repeated.p_value == pytest.approx(once.p_value, abs=0.03)
    assert repeated.auroc == pytest.approx(once.auroc)
    assert repeated.interval.low == pytest.approx(once.interval.low)


def test_paraphrases_are_compared_in_pairs():
    easy = np.random.normal(0, 9, 50)
    scores = easy + np.random.normal(0.3, 1, 50)
    rewritten = easy + np.random.normal(0, 1, 50)
    found = from_paraphrases(scores, rewritten, single(scores), seed=3)
    theirs = stats.permutation_test(
        (scores, rewritten),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
    )
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    turned = from_paraphrases(rewritten, scores, single(scores), seed=3)
    assert turned.p_value == pytest.approx(1 - found.p_value)


def test_the_interval_of_an_area_holds_the_truth_as_often_as_it_says():
    for shift in (0.0, 1.0, 2.0):
        truth, held = stats.norm.cdf(shift / 2**0.5), 0
        for _ in range(400):
            scores, others = np.random.normal(shift, 1, 20), np.random.normal(0, 1, 30)
            area = float((scores[:, None] > others).mean())
            interval = auroc_interval(area, 20, 30)
            held += interval.low <= truth <= interval.high
        assert held / 400 > 0.91


def test_a_perfect_area_leaves_some_doubt():
    interval = auroc_interval(1.0, 20, 30)
    assert (0.8 < interval.low < 0.95, interval.high) == (True, 1.0)
    mirrored = auroc_interval(0.0, 20, 30)
    assert (mirrored.low, mirrored.high) == pytest.approx((0.0, 1 - interval.low), abs=1e-6)
