"""Drafts for models with recurrent states, which are taken back when a draft was wrong: the same
texts as without, bit for bit."""

import random

import pytest

from engine.llm.cache.recurrent_slots import RecurrentState
from engine.llm.runner.model_runner import ModelRunner
from kernels import native
from tests.helpers.llm.logits import cramped
from tests.helpers.llm.repetitive import make_requests, outcome, repetitive, without_drafts
from tests.helpers.llm.speculating import (
    RECURRENT,
    VOCAB,
    Oracle,
    check_drafts,
    draft_by,
    same_with_and_without,
)

pytestmark = pytest.mark.usefixtures("cheap_rows")


@pytest.fixture(scope="module", params=RECURRENT)
def folder(request):
    make = request.getfixturevalue(request.param)
    return make(seed=random.randrange(1 << 30), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def hybrid(tiny_qwen3_next):
    return tiny_qwen3_next(seed=random.randrange(1 << 30), vocab_size=VOCAB)


def test_the_slow_twins(engines, hybrid, rng, monkeypatch):
    """In PyTorch, where a row may round otherwise beside other rows: the same tokens."""
    monkeypatch.setattr(native, "library", lambda: None)
    requests = make_requests(engines, rng, 5, (20, 40), logprobs=None, prompt_logprobs=None)
    check_drafts(same_with_and_without(engines, hybrid, requests, rng))


def test_preemption_and_aborts(engines, hybrid, rng):
    endless = {"ignore_eos": True, "stop_token_ids": ()}
    requests = make_requests(engines, rng, 5, (90, 120), n=1, **endless)
    doomed = {r.request_id: rng.randrange(2, 20) for r in rng.sample(requests, 2)}
    knobs = {"enable_prefix_caching": False, **cramped(hybrid)}
    check_drafts(same_with_and_without(engines, hybrid, requests, rng, aborts=doomed, **knobs))


def test_a_text_that_goes_on_from_one_that_was_drafted(engines, folder, rng):
    """Each block's state is kept, as without drafts, and is that of accepted tokens only."""
    engine = engines.make(folder, num_speculative_tokens=7, prompt_lookup_min=1)
    plain = engines.make(folder, num_speculative_tokens=0, enable_prefix_caching=False)
    prompt, known = repetitive(rng, 30), 0
    for turn in range(4):
        request = engines.request(str(turn), prompt, max_tokens=40, ignore_eos=True)
        [expected] = engines.run(plain, [request]).values()
        draft_by(engine, Oracle(outcome({(str(turn), 0): expected}), rng))
        [got] = engines.run(engine, [request]).values()
        assert got.token_ids == expected.token_ids
        assert got.num_cached_tokens == known // 16 * 16
        known = len(prompt) + len(got.token_ids) - 1  # the last token was drawn, but not computed
        prompt = prompt + got.token_ids + repetitive(rng, 5)
    check_drafts(engine.stats())


def test_steps_that_fail(engines, hybrid, rng, monkeypatch):
    """Faults in steps with drafts and in those that run tokens again."""
    requests = make_requests(engines, rng, 5, (30, 40), ignore_eos=True)
    expected = without_drafts(engines, hybrid, requests)
    engine = engines.make(hybrid, num_speculative_tokens=7)
    draft_by(engine, Oracle(expected, rng))
    logits_to_sample, num_failed = ModelRunner._logits_to_sample, 0

    def fragile(runner, rows, hidden):
        nonlocal num_failed
        shares = [span.sequence for span in rows.spans]
        if any(one.is_apart or one.drafts for one in shares) and rng.random() < 0.2:
            num_failed += 1
            raise RuntimeError("a fault after the states were written")
        return logits_to_sample(runner, rows, hidden)

    monkeypatch.setattr(ModelRunner, "_logits_to_sample", fragile)
    assert outcome(engines.run(engine, requests)) == expected
    assert num_failed > 0


def test_a_state_that_kept_a_wrong_draft_is_found_out(engines, hybrid, rng, monkeypatch):
    """The comparison can fail: the state after the drafts is taken for the one before them."""
    rewind = RecurrentState.rewind

    def forgetful(state):
        after = state._slot
        state._pool.hold(after)
        num_tokens = rewind(state)
        state._slot = after
        return num_tokens

    monkeypatch.setattr(RecurrentState, "rewind", forgetful)
    requests = make_requests(engines, rng, 4, (40, 50), temperature=1.0, ignore_eos=True)
    with pytest.raises(AssertionError):
        same_with_and_without(engines, hybrid, requests, rng, debug_invariants=False)
