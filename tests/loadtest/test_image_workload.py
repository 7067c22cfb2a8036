import random

import pytest

from loadtest.image_workload import (
    ImageSettings,
    StepRange,
    behind_images,
    closed_images,
    scene_prompt,
    spread,
)

SETTINGS = ImageSettings(64, StepRange(10, 40))


@pytest.mark.parametrize("count", [1, 2, 5, 48])
def test_every_run_has_the_same_amount_of_work(count: int) -> None:
    one, other = (closed_images(SETTINGS, 8, count, seed).requests for seed in (1, 2))
    assert sorted(r.steps for r in one) == sorted(r.steps for r in other)
    assert all(10 <= r.steps <= 40 for r in one)
    if count > 1:
        assert {10, 40} <= {r.steps for r in one}
    assert [r.prompt for r in one] != [r.prompt for r in other]
    assert [r.seed for r in one] != [r.seed for r in other]


def test_the_same_seed_makes_the_same_workload() -> None:
    first, second = (closed_images(SETTINGS, 8, 20, 7) for _ in range(2))
    assert first == second
    assert first.parameters == {
        "size": 64,
        "steps": "10:40",
        "guidance": 4.0,
        "clients": 8,
        "seed": 7,
    }
    steps = [request.steps for request in first.requests]
    assert steps != sorted(steps)


def test_one_count_has_no_spread() -> None:
    assert spread(StepRange(10, 10), 3) == [10, 10, 10]
    assert spread(StepRange(10, 40), 1) == [25]


def test_a_short_request_behind_long_ones() -> None:
    workload = behind_images(ImageSettings(128, StepRange(10, 10)), 8, 50, 0.3, seed=1)
    *long, short = workload.requests
    assert workload.concurrency is None
    assert [(r.steps, r.at_s, r.role) for r in long] == [(50, 0.0, "long")] * 8
    assert (short.steps, short.at_s, short.role) == (10, 0.3, "short")
    assert len({r.seed for r in workload.requests}) == 9


def test_prompts_fit_a_text_encoder_that_spells_every_word() -> None:
    rng = random.Random(random.getrandbits(32))
    prompts = {scene_prompt(rng) for _ in range(2000)}
    longest = max(prompts, key=lambda prompt: len(prompt.replace(" ", "")))
    assert len(longest.replace(" ", "")) <= 75, longest
    assert len(prompts) > 1500
