"""How many prompt tokens a step may take, by a target and what was learned."""

import pytest

from engine.llm.cost.step_budget import LEAST_TOKENS, StepBudget
from engine.llm.cost.step_cost import TYPICAL, StepWork
from tests.helpers.llm.paged_executor import make_config

NOBODY = StepWork()
FOUR = StepWork(num_decodes=4, decode_context=400)
SIXTEEN = StepWork(num_decodes=16, decode_context=1600)


def seconds(work: StepWork) -> float:
    return sum(part * size for part, size in zip(TYPICAL, work.sizes, strict=True))


def make(step_ms: float = 0.0, ratio: float = 0.0, slowness: float = 1.0) -> StepBudget:
    """One that has seen a prompt and a few steps of decodes."""
    config = make_config(max_num_batched_tokens=512, max_step_ms=step_ms, max_step_ratio=ratio)
    budget = StepBudget(config)
    prompt = StepWork(num_prompt_tokens=100, num_pairs=5000)
    for work in (prompt, FOUR, SIXTEEN):
        budget.observe(work, slowness * seconds(work))
    return budget


def with_prompt(decodes: StepWork, num_tokens: int, start: int = 0) -> StepWork:
    return StepWork(
        num_decodes=decodes.num_decodes,
        decode_context=decodes.decode_context,
        num_prompt_tokens=num_tokens,
        num_pairs=num_tokens * (start + num_tokens / 2),
    )


@pytest.mark.parametrize("start", [0, 4000])
@pytest.mark.parametrize("step_ms", [120.0, 300.0])
def test_a_step_takes_as_long_as_asked(step_ms: float, start: int) -> None:
    num_tokens = make(step_ms).beside(SIXTEEN, SIXTEEN, start)
    assert seconds(with_prompt(SIXTEEN, num_tokens, start)) == pytest.approx(
        step_ms / 1000, rel=0.05
    )


def test_steps_have_numbers_of_rows_that_are_recorded() -> None:
    for step_ms in range(120, 300, 7):
        assert (4 + make(float(step_ms)).beside(FOUR, SIXTEEN, 0)) % 8 == 0


@pytest.mark.parametrize("slowness", [1.0, 3.0, 30.0])
def test_a_ratio_asks_for_the_same_on_every_machine(slowness: float) -> None:
    num_tokens = make(ratio=2.0, slowness=slowness).beside(SIXTEEN, SIXTEEN, 0)
    assert seconds(with_prompt(SIXTEEN, num_tokens)) == pytest.approx(
        2 * seconds(SIXTEEN), rel=0.05
    )


def test_the_ratio_is_that_of_the_batch_to_come() -> None:
    num_tokens = make(ratio=2.0).beside(FOUR, SIXTEEN, 0)
    assert seconds(with_prompt(FOUR, num_tokens)) == pytest.approx(2 * seconds(SIXTEEN), rel=0.05)


def test_without_decodes_the_whole_budget_is_there() -> None:
    for budget in (make(1.0), make(ratio=1.5)):
        assert budget.beside(NOBODY, SIXTEEN, 0) == budget.num_tokens == 512


def test_without_a_target_too() -> None:
    budget = make()
    assert not budget.is_bounded
    assert (budget.beside(SIXTEEN, SIXTEEN, 0), budget.num_tokens) == (496, 512)
    assert (budget.predicted_s, budget.measured_s) == (0.0, 0.0)


def test_before_anything_is_known_too() -> None:
    config = make_config(max_num_batched_tokens=512, max_step_ms=1.0)
    assert StepBudget(config).beside(FOUR, FOUR, 0) == 508


def test_prompts_always_go_on() -> None:
    """Even if decodes alone take longer than the target, by tokens and by time."""
    assert make(1.0).beside(FOUR, FOUR, 5_000_000) == LEAST_TOKENS
    many = StepWork(num_decodes=400, decode_context=40_000)
    num_tokens = make(1.0).beside(many, many, 0)
    assert seconds(with_prompt(many, num_tokens)) == pytest.approx(1.25 * seconds(many), rel=0.1)


def test_never_more_than_the_step_has_room_for() -> None:
    budget = make(3_600_000.0)
    assert (budget.beside(SIXTEEN, SIXTEEN, 0), budget.num_tokens) == (496, 512)
    for num_decodes, left in ((505, 7), (512, 0)):
        full = StepWork(num_decodes=num_decodes)
        assert make(1.0).beside(full, full, 0) == left


def test_fast_machines_are_not_held_to_what_nobody_notices() -> None:
    num_tokens = make(ratio=2.0, slowness=0.1).beside(FOUR, FOUR, 0)
    assert 0.1 * seconds(with_prompt(FOUR, num_tokens)) == pytest.approx(0.025, rel=0.05)


def test_what_is_told_of_a_step() -> None:
    budget = make(80.0)
    budget.observe(SIXTEEN, 1.0)
    assert budget.predicted_s == pytest.approx(seconds(SIXTEEN), rel=0.05)
    assert budget.measured_s == 1.0
    num_tokens = budget.beside(SIXTEEN, SIXTEEN, 0)
    assert budget.num_tokens == 16 + num_tokens < 512


def test_rows_of_drafts_that_take_longer_than_others_cost_more() -> None:
    budget = make(80.0)
    before = budget.price(FOUR)
    assert before.surcharge == 1.0 and before.draft_row == before.row > 0.0
    drafts = StepWork(num_decodes=8, decode_context=800, num_drafts=4)
    budget.observe(drafts, 2 * seconds(FOUR))
    after = budget.price(FOUR)
    assert after.surcharge > 1.5
    assert after.draft_row == pytest.approx(after.row * after.surcharge)


def test_rows_that_run_again_are_charged_to_drafts() -> None:
    budget = make(80.0)
    again = StepWork(num_decodes=8, decode_context=800, num_again=4)
    budget.observe(again, seconds(again))
    assert budget.price(FOUR).surcharge > 1.0
