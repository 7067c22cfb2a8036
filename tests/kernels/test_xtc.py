"""XTC: which tokens are left out, how often, and that nothing else about a row changes."""

import random

import pytest
import torch

from kernels.sample_tokens import SamplingRows, packed_row
from tests.helpers.kernels.sample_tokens_runs import RUNS

CPU = torch.device("cpu")


def drawn(run, shares, num=1, *, seed=0, logits=None, **parameters):
    """`num` tokens of positions 0, 1, ...; and how many each could have been."""
    if logits is None:
        logits = torch.tensor(shares, dtype=torch.float64).log().float()
    packed = [packed_row(seed=seed, **parameters)] * num
    rows = SamplingRows.from_host(packed, [*range(num)], None, CPU)
    result = run(logits.expand(num, -1).contiguous(), rows)
    return result.token_ids.tolist(), result.num_kept.tolist()


def num_rows(run, interpreted, others):
    """Interpreted, a row takes a hundred times as long."""
    return interpreted if run is RUNS.get("triton") else others


@pytest.mark.parametrize(
    ("shares", "threshold", "kept"),
    [
        ([0.1, 0.4, 0.2, 0.3], 0.15, {0, 2}),
        ([0.1, 0.4, 0.2, 0.3], 0.25, {0, 2, 3}),
        ([0.1, 0.4, 0.2, 0.3], 0.35, {0, 1, 2, 3}),  # a single top choice stays
        ([0.1, 0.4, 0.2, 0.3], 0.45, {0, 1, 2, 3}),  # none
        ([0.1, 0.4, 0.2, 0.3], 0.0, {0}),
        ([0.45, 0.1, 0.45], 0.4, {1, 2}),  # of equals the last one
        ([0.25] * 4, 0.2, {3}),
        ([1.0], 0.1, {0}),
        ([0.5, 0.5], 0.5001, {0, 1}),
    ],
)
def test_top_choices_but_the_last_are_left_out(run, shares, threshold, kept):
    xtc = {"xtc_probability": 1.0, "xtc_threshold": threshold}
    num = num_rows(run, 5, 16)
    tokens, num_kept = drawn(run, shares, num, seed=random.randrange(1 << 62), **xtc)
    assert num_kept == [len(kept)] * num
    assert set(tokens) <= kept


@pytest.mark.parametrize(
    ("parameters", "num_kept"),
    [
        ({}, 4),  # 0.1 is no top choice yet
        ({"top_k": 4}, 1),  # but of what is left: 4/10, 3/10, 2/10, 1/10
        ({"top_p": 0.6}, 1),
        ({"min_p": 0.6}, 1),
        ({"temperature": 0.0}, 1),
    ],
)
def test_it_acts_on_what_the_steps_before_have_left(run, parameters, num_kept):
    shares = [0.08, 0.32, 0.16, 0.24, 0.05, 0.05, 0.05, 0.05]
    threshold = {"xtc_probability": 1.0, "xtc_threshold": 0.0999}
    expected = {} if parameters else {"xtc_threshold": 0.15}
    num = num_rows(run, 3, 8)
    tokens, found = drawn(run, shares, num, **parameters, **(threshold | expected))
    assert found == [num_kept if parameters else 6] * num
    if parameters == {"temperature": 0.0}:
        assert tokens == [1] * num


def test_typical_tokens_are_its_choices(run):
    logits = 2 * torch.randn(200)
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.0}
    _, [num_typical] = drawn(run, None, logits=logits, typical_p=0.6)
    [token], [num_kept] = drawn(run, None, logits=logits, typical_p=0.6, **xtc)
    assert num_typical > 1
    assert num_kept == 1
    typical, _ = drawn(run, None, 12, logits=logits, typical_p=0.6)
    assert logits[token] <= logits[typical].min()


def test_it_happens_as_often_as_asked_and_moves_no_other_number(run):
    """Where it does not happen the token is what it was without."""
    seed, share = random.randrange(1 << 62), random.uniform(0.2, 0.8)
    num = num_rows(run, 24, 800)
    logits = torch.randn(8) / 2
    plain, all_kept = drawn(run, None, num, seed=seed, logits=logits)
    tokens, num_kept = drawn(
        run, None, num, seed=seed, logits=logits, xtc_probability=share, xtc_threshold=0.01
    )
    assert all_kept == [8] * num
    happened = [kept == 1 for kept in num_kept]
    assert abs(sum(happened) - share * num) < 5 * (num * share * (1 - share)) ** 0.5, share
    for yes, token, other, kept in zip(happened, tokens, plain, num_kept, strict=True):
        assert token == (int(logits.argmin()) if yes else other), share
        assert kept == (1 if yes else 8)


def test_neutral_values_change_nothing(run):
    seed, logits = random.randrange(1 << 62), torch.randn(300)
    plain = drawn(run, None, 12, seed=seed, logits=logits)
    for off in ({"xtc_probability": 0.0, "xtc_threshold": 0.0},
                {"xtc_probability": 1.0, "xtc_threshold": 0.51}):  # fmt: skip
        assert drawn(run, None, 12, seed=seed, logits=logits, **off) == plain
