"""What drafts cost beyond their rows."""

import pytest

from engine.llm.cost.draft_surcharge import DraftSurcharge


def taught(taken_s: float, num_steps: int = 40) -> DraftSurcharge:
    """Steps of 1 s with drafts that are expected to take 0.2 s more."""
    surcharge = DraftSurcharge()
    for _ in range(num_steps):
        surcharge.learn(1.0, 1.2, taken_s)
    return surcharge


def test_what_costs_as_expected_costs_no_more() -> None:
    assert DraftSurcharge().factor == 1.0
    assert taught(1.2).factor == pytest.approx(1.0)


@pytest.mark.parametrize(("taken_s", "factor"), [(1.6, 3.0), (2.2, 6.0), (1.1, 0.5)])
def test_it_follows_what_steps_took(taken_s: float, factor: float) -> None:
    assert taught(taken_s).factor == pytest.approx(factor, rel=0.1)


def test_one_late_step_is_not_taken_for_the_rule() -> None:
    surcharge = taught(1.2)
    before = surcharge.factor
    surcharge.learn(1.0, 1.2, 1000.0)
    assert before < surcharge.factor < 2.0
    for _ in range(80):
        surcharge.learn(1.0, 1.2, 1.2)
    assert surcharge.factor < 1.3


def test_what_was_too_dear_is_tried_again_in_time() -> None:
    surcharge = taught(2.2)
    for _ in range(2000):
        surcharge.pass_by()
    assert surcharge.factor < 1.2
