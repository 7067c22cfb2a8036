"""The number of tokens to draft: against trying them all."""

import random

from engine.llm.draft_length import FIRST_RATE, AcceptanceRate, best_length


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
