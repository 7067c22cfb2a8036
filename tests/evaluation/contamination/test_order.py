"""The order of items: stretches, their orders, and an exact test."""

import itertools
import random

import numpy as np
import pytest

from evaluation.contamination.order import BETWEEN, order_p_value, orders, preferences, stretches


def test_stretches_are_neighbours_that_fit():
    for _ in range(50):
        sizes = [random.randint(1, 40) for _ in range(30)]
        texts = [f"item {number}" for number in range(30)]
        found = stretches(texts, sizes, limit=60)
        kept = [text for stretch in found for text in stretch]
        assert kept == [text for text in texts if text in kept]
        for stretch in found:
            numbers = [texts.index(text) for text in stretch]
            assert len(stretch) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
            assert sum(sizes[number] + 1 for number in numbers) <= 60
        # What is left out is too large for either neighbour's stretch.
        for number in set(range(29)) - {texts.index(text) for text in kept}:
            assert sizes[number] + 1 + sizes[number + 1] + 1 > 60


def test_orders_have_the_same_items_and_the_published_one_first():
    stretch = [str(number) for number in range(6)]
    found = orders(stretch, 40, np.random.default_rng(random.randrange(999)))
    assert found[0] == BETWEEN.join(stretch)
    assert all(sorted(order.split(BETWEEN)) == stretch for order in found)
    assert len(set(found)) > 30


def test_the_p_value_is_that_of_all_draws():
    for seed in range(20):
        preferred = preferences(np.random.normal(0, 1, (3, 4)) * 9 - 50)
        sums = [sum(draw) for draw in itertools.product(*preferred)]
        share = np.mean(np.array(sums) >= preferred[:, 0].sum() - 1e-9)
        assert order_p_value(preferred, seed=seed) == pytest.approx(share, abs=0.025)
    best = np.arange(20.0)[None, ::-1].repeat(5, axis=0)
    assert order_p_value(preferences(best), seed=0) < 0.001
    assert order_p_value(preferences(-best), seed=0) > 0.999


def test_orders_that_are_all_alike_say_nothing():
    assert order_p_value(preferences(np.full((4, 5), -7.0)), seed=0) == 1.0
