"""Losses of formats: differences are those of the tokens, and intervals come from whole texts."""

import random

import numpy as np
import pytest

from tools.quantization_table.losses import TEXTS, Loss, lost
from tools.quantization_table.token_kinds import KINDS


@pytest.fixture
def original():
    """Random losses of random tokens for every text."""
    return {
        group: [
            [Loss(random.expovariate(1), random.choice(KINDS)) for _ in range(random.randint(2, 9))]
            for _ in texts
        ]
        for group, texts in TEXTS.items()
    }


def plus(losses, extra):
    """The losses of another model: each token's plus `extra(group, text, loss)`."""
    return {
        group: [
            [Loss(one.nats + extra(group, number, one), one.kind) for one in text]
            for number, text in enumerate(texts)
        ]
        for group, texts in losses.items()
    }


def test_a_constant_loss_has_no_interval(original):
    found = lost(plus(original, lambda group, number, one: 0.25), original)
    for row in [*found["groups"].values(), *found["kinds"].values()]:
        assert row["difference"] == pytest.approx(0.25)
        assert (row["low"], row["high"]) == (pytest.approx(0.25), pytest.approx(0.25))
    mean = np.mean([one.nats for text in original["Hindi"] for one in text])
    assert found["groups"]["Hindi"]["original"] == pytest.approx(mean)


def test_what_hurts_one_group_or_kind_is_shown_there(original):
    hurt, kind = random.choice(list(TEXTS)), random.choice(KINDS)
    in_group = lost(plus(original, lambda group, *_: float(group == hurt)), original)["groups"]
    assert {name for name, row in in_group.items() if row["difference"] > 0} == {hurt}
    by_kind = lost(plus(original, lambda *its: float(its[2].kind == kind)), original)["kinds"]
    assert {name for name, row in by_kind.items() if row["difference"] > 0} == {kind}


def test_tokens_of_one_text_count_as_one_observation(original):
    # Half of the texts lose a nat per token: twenty observations, however many tokens there are.
    mixed = plus(original, lambda group, number, one: float(number % 2))
    once = lost(mixed, original)["groups"]
    longer = [
        {group: [text * 50 for text in texts] for group, texts in its.items()}
        for its in (mixed, original)
    ]
    often = lost(*longer)["groups"]
    for group, row in once.items():
        assert row["high"] - row["low"] > 0.2
        assert often[group]["low"] == pytest.approx(row["low"])
        assert often[group]["tokens"] == 50 * row["tokens"]
