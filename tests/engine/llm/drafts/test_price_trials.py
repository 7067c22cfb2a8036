import random

from engine.llm.drafts.price_trials import LONGEST_PAUSE, RETRY_AFTER, TRIAL_STEPS, PriceTrials


def trial_starts(trials: PriceTrials, num_steps: int) -> list[int]:
    """Take dear steps, and return the numbers of those that begin a trial."""
    tried = []
    for step in range(num_steps):
        trials.note(is_dear=True)
        if trials.is_on:
            tried.append(step)
    starts = [step for step in tried if step - 1 not in tried]
    assert tried == [start + i for start in starts for i in range(TRIAL_STEPS)][: len(tried)]
    return starts


def test_pauses_grow_up_to_the_longest() -> None:
    starts = trial_starts(PriceTrials(), 20_000)
    ends = [0, *(start + TRIAL_STEPS for start in starts)]
    pauses = [start - end for start, end in zip(starts, ends, strict=False)]
    grown = [RETRY_AFTER << i for i in range(len(pauses))]
    assert pauses == [min(pause, LONGEST_PAUSE) for pause in grown]


def test_a_price_that_stays_too_high_is_tried_as_rarely_as_promised() -> None:
    trials, num_tried = PriceTrials(), 0
    for num_steps in range(1, 20_000):
        trials.note(is_dear=True)
        num_tried += trials.is_on
        assert num_tried <= 20 + num_steps / 257


def test_a_price_that_can_be_paid_begins_anew() -> None:
    for _ in range(10):
        trials = PriceTrials()
        trial_starts(trials, random.randrange(5_000))
        trials.note(is_dear=False)
        assert not trials.is_on
        assert trial_starts(trials, RETRY_AFTER + 1) == [RETRY_AFTER]
