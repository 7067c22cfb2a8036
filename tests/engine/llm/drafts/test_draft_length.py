"""The number of tokens to draft: against trying them all."""

import math
import random

from engine.llm.drafts.draft_length import FIRST_RATE, AcceptanceRate, best_length, best_length_by


def gain(rate: float, price: float, length: int) -> float:
    return sum(rate**i for i in range(length + 1)) / (1 + length * price)


def test_no_other_length_brings_more() -> None:
    for _ in range(2000):
        rate, price, most = random.random(), random.choice([0.0, random.random()]), 12
        best = best_length(rate, price, most)
        assert 0 <= best <= most
        others = max(gain(rate, price, length) for length in range(most + 1))
        assert gain(rate, price, best) >= others - 1e-9


def test_what_costs_more_than_it_brings_is_not_drafted() -> None:
    assert best_length(0.5, 0.5, 8) == 0
    assert best_length(0.9, 0.0, 8) == 8
    assert best_length(0.9, 0.01, 0) == best_length(0.9, 0.01, -1) == 0


def test_tokens_may_have_rates_of_their_own() -> None:
    for _ in range(500):
        price, num_given = random.choice([0.0, random.random() / 2]), random.randrange(3)
        rates = [random.random() ** 0.3 for _ in range(num_given + 8)]
        gains = [1.0]
        for length in range(1, 9):
            likely = [math.prod(rates[: num_given + i]) for i in range(1, length + 1)]
            gains.append((1 + sum(likely)) / (1 + length * price))
        found = best_length_by(rates, price, num_given=num_given)
        assert gains[found] >= max(gains) - 1e-9
        least_gain = random.uniform(1.0, 2.0)
        found = best_length_by(iter(rates), price, num_given=num_given, least_gain=least_gain)
        assert (found > 0) == (max(gains) > least_gain)
    assert best_length_by([], 0.0) == best_length_by([0.9], 0.0, num_given=2) == 0


def test_a_rate_follows_what_drafts_were() -> None:
    rate = AcceptanceRate()
    assert rate.value == FIRST_RATE
    for _ in range(200):
        rate.learn(4, 4)
    assert rate.value > 0.999
    for _ in range(200):
        rate.learn(4, 1)  # one right, one wrong, two void
    assert abs(rate.value - 0.5) < 0.01
    for _ in range(200):
        rate.learn(1, 0)
    assert rate.value < 0.001
