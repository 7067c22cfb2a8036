"""How often guesses are right."""

import random

import pytest

from engine.llm.drafts.guess_rates import GuessRates


@pytest.mark.parametrize("num_right", [0, 1, 3, 7, 100])
def test_rates_of_different_pasts_are_learned_apart(num_right: int) -> None:
    rates, before = GuessRates(), GuessRates()
    for _ in range(2000):
        rates.learn(num_right, random.random() < 0.6)
    # The deviation is 0.03, as the last 128 or so count.
    assert rates.after(num_right) == pytest.approx(0.6, abs=0.2)
    others = [n for n in (0, 1, 2, 4, 8) if rates.after(n) != rates.after(num_right)]
    assert len(others) == 4
    assert [rates.after(n) for n in others] == [before.after(n) for n in others]


def test_what_was_long_ago_is_forgotten() -> None:
    rates = GuessRates()
    for is_right in [True] * 10_000 + [False] * 500:
        rates.learn(0, is_right)
    assert rates.after(0) < 0.05
