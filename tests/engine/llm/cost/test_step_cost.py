"""What is learned of a step's time: by machines that are unlike the one learning begins with."""

import random
from itertools import pairwise

import pytest

from engine.llm.cost.step_cost import TYPICAL, StepCost, StepWork
from engine.llm.decision import ScheduleDecision, ScheduledSequence

MACHINES = {
    "as expected": TYPICAL,
    "ten times slower": tuple(10 * t for t in TYPICAL),
    "bound by memory": (100e-3, 0.5e-3, 0.1e-6, 0.4e-3, 0.05e-6),
    "bound by arithmetic": (1e-3, 6e-3, 2e-6, 6e-3, 1e-6),
    "dear attention": (20e-3, 0.1e-3, 5e-6, 4e-3, 5e-6),
    "a fast card": (4e-3, 0.01e-3, 0.01e-6, 0.02e-3, 0.002e-6),
}


def seconds(machine: tuple[float, ...], work: StepWork) -> float:
    return sum(part * size for part, size in zip(machine, work.sizes, strict=True))


def random_work(most_prompt_tokens: int = 512) -> StepWork:
    decodes = random.randrange(1, 33)
    tokens = random.choice([0, 0, random.randrange(2, most_prompt_tokens)])
    return StepWork(
        num_decodes=decodes,
        decode_context=decodes * random.randrange(50, 400),
        num_prompt_tokens=tokens,
        num_pairs=tokens * (random.randrange(500) + tokens / 2),
    )


def taught(machine: tuple[float, ...], num_steps: int, noise: float) -> StepCost:
    cost = StepCost()
    for _ in range(num_steps):
        work = random_work()
        cost.observe(work, seconds(machine, work) * random.lognormvariate(0, noise))
    return cost


def test_the_work_of_a_decision() -> None:
    def share(start: int, num_tokens: int) -> ScheduledSequence:
        return ScheduledSequence(0, [1] * num_tokens, start, [], 0, 0)

    decision = ScheduleDecision(scheduled=[share(100, 1), share(20, 1), share(0, 8), share(32, 2)])
    assert StepWork.of(decision) == StepWork(
        num_decodes=2, decode_context=120, num_prompt_tokens=10, num_pairs=8 * 4 + 2 * 33
    )
    drafted = ScheduledSequence(0, [1, 2, 3], 50, [], 3, 0)
    work = StepWork.of(ScheduleDecision(scheduled=[drafted]))
    assert work == StepWork(num_decodes=3, decode_context=150, num_drafts=2)
    assert work.without_drafts == StepWork(num_decodes=1, decode_context=50)
    again = ScheduledSequence(0, [1, 2, 3, 4], 50, [], 2, 0, is_apart=True)
    work = StepWork.of(ScheduleDecision(scheduled=[again]))
    assert work == StepWork(num_decodes=4, decode_context=200, num_drafts=1, num_again=2)
    assert work.without_again == StepWork(num_decodes=2, decode_context=100, num_drafts=1)
    assert work.without_drafts == StepWork(num_decodes=1, decode_context=50)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_any_machine_is_learned(machine: tuple[float, ...]) -> None:
    cost = taught(machine, num_steps=150, noise=0.1)
    works = [random_work() for _ in range(100)]
    errors = sorted(abs(cost.predict(work) / seconds(machine, work) - 1) for work in works)
    assert errors[50] < 0.2
    assert errors[90] < 0.45


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_tokens_that_fit_are_predicted_to_fit(machine: tuple[float, ...]) -> None:
    cost = taught(machine, num_steps=100, noise=0.05)
    for _ in range(50):
        start, limit = (
            random.randrange(3000),
            random.uniform(0.001, 1) * seconds(machine, StepWork()) * 9,
        )
        num_tokens = cost.prompt_tokens_in(limit, start)

        def added(n: int, start: int = start) -> float:
            work = StepWork(num_prompt_tokens=n, num_pairs=n * (start + n / 2))
            return cost.predict(work) - cost.predict(StepWork())

        assert added(num_tokens) <= limit * 1.001
        assert added(num_tokens + 1) > limit * 0.999


def test_nothing_fits_in_no_time() -> None:
    cost = taught(TYPICAL, num_steps=20, noise=0.0)
    assert cost.prompt_tokens_in(0.0, 0) == cost.prompt_tokens_in(-1.0, 0) == 0


def test_one_step_gives_the_scale() -> None:
    cost, work = StepCost(), StepWork(num_prompt_tokens=100, num_pairs=5000)
    assert not cost.is_known
    cost.observe(work, 7.0)
    assert cost.is_known
    assert cost.predict(work) == pytest.approx(7.0)


def test_a_few_late_steps_change_nothing() -> None:
    """Somebody else had the processor: three times, once for a minute."""
    cost = taught(TYPICAL, num_steps=100, noise=0.05)
    work = StepWork(num_decodes=16, decode_context=2000)
    mixed = StepWork(num_decodes=15, num_prompt_tokens=40, num_pairs=800)
    for late in (work, mixed, work):
        before = cost.predict(work), cost.predict(mixed)
        cost.observe(late, 60.0)
        for _ in range(7):
            cost.observe(work, seconds(TYPICAL, work))
        assert (cost.predict(work), cost.predict(mixed)) == pytest.approx(before, rel=0.15)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_change_of_pace_is_followed_at_once(factor: float) -> None:
    """Steps with prompts follow it too, though only decodes have shown it."""
    cost = taught(TYPICAL, num_steps=100, noise=0.05)
    work = StepWork(num_decodes=16, decode_context=2000)
    for _ in range(5):
        cost.observe(work, factor * seconds(TYPICAL, work))
    mixed = StepWork(num_decodes=15, decode_context=2000, num_prompt_tokens=64, num_pairs=2048)
    assert cost.predict(mixed) == pytest.approx(factor * seconds(TYPICAL, mixed), rel=0.3)


def test_thousands_of_decodes_do_not_wipe_out_what_prompts_cost() -> None:
    machine = MACHINES["bound by arithmetic"]
    cost = taught(machine, num_steps=100, noise=0.05)
    for _ in range(5_000):
        work = StepWork(num_decodes=4, decode_context=800)
        cost.observe(work, seconds(machine, work) * random.lognormvariate(0, 0.1))
    mixed = StepWork(num_decodes=4, decode_context=800, num_prompt_tokens=64, num_pairs=2048)
    assert cost.predict(mixed) == pytest.approx(seconds(machine, mixed), rel=0.3)


def test_new_kernels_are_learned() -> None:
    """The shape changes, not the pace only: prompts become four times cheaper."""
    cost = taught(TYPICAL, num_steps=100, noise=0.05)
    machine = (*TYPICAL[:3], TYPICAL[3] / 4, TYPICAL[4] / 4)
    for _ in range(400):
        work = random_work()
        cost.observe(work, seconds(machine, work) * random.lognormvariate(0, 0.05))
    decodes = StepWork(num_decodes=16, decode_context=2000)
    mixed = StepWork(num_decodes=16, decode_context=2000, num_prompt_tokens=100, num_pairs=5000)
    assert cost.predict(decodes) == pytest.approx(seconds(machine, decodes), rel=0.25)
    assert cost.predict(mixed) == pytest.approx(seconds(machine, mixed), rel=0.25)


@pytest.mark.parametrize("nonsense", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clock_that_jumps_teaches_nothing(nonsense: float) -> None:
    cost = StepCost()
    cost.observe(StepWork(num_decodes=1), nonsense)
    assert not cost.is_known


def test_predictions_stay_positive_and_grow_with_the_work() -> None:
    """Whatever was measured: steps of random length."""
    cost = StepCost()
    for _ in range(300):
        cost.observe(random_work(), random.lognormvariate(-3, 2))
        times = [
            cost.predict(StepWork(num_decodes=4, num_prompt_tokens=n, num_pairs=n * n / 2))
            for n in (0, 16, 64, 512)
        ]
        assert times[0] > 0
        assert all(less < more for less, more in pairwise(times))
