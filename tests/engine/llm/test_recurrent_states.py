"""Models with recurrent states: what is found again, what is shared, and what a fault leaves."""

import random

import pytest

from engine.contract.groups import BeamParams, ContrastParams, GuidanceParams
from engine.llm.runner.model_runner import ModelRunner

BLOCK = 16


@pytest.fixture(
    scope="module", params=["tiny_qwen3_next", "tiny_mamba2", "tiny_falcon_h1", "tiny_lfm2"]
)
def folder(request):
    return request.getfixturevalue(request.param)(seed=random.randrange(1 << 30))


def text(rng, length):
    return [rng.randrange(100) for _ in range(length)]


def cached(done, name):
    return done[name, 0].num_cached_tokens


def test_a_next_turn_starts_from_the_last_block_that_was_computed(engines, folder, rng):
    engine = engines.make(folder)
    prompt = text(rng, rng.randrange(1, 80))
    first = engines.request("1", prompt, max_tokens=rng.randrange(1, 40), ignore_eos=True)
    answer = engines.run(engine, [first])["1", 0].token_ids
    # The last token was drawn and not computed.
    known = len(prompt) + len(answer) - 1
    turn = engines.request("2", prompt + answer + text(rng, 9))
    assert cached(engines.run(engine, [turn]), "2") == known // BLOCK * BLOCK


def test_texts_with_a_common_beginning_find_it_once_two_have_had_it(engines, folder, rng):
    engine = engines.make(folder)
    shared = text(rng, rng.randrange(BLOCK, 100))
    found = []
    for number in range(4):
        request = engines.request(str(number), [*shared, 101 + number, *text(rng, 40)])
        found.append(cached(engines.run(engine, [request]), str(number)))
    whole = len(shared) // BLOCK * BLOCK
    assert found == [0, 0, whole, whole]


def test_chunks_of_any_size_keep_states(engines, folder, rng):
    budget = rng.randrange(2, 40)
    engine = engines.make(folder, max_num_batched_tokens=budget, max_num_seqs=2)
    prompt = text(rng, 100)
    request = engines.request("1", prompt, max_tokens=1)
    engines.run(engine, [request])
    again = engines.request("2", prompt, max_tokens=1)
    assert cached(engines.run(engine, [again]), "2") == 96


WAYS = {
    "completions": {"n": 3, "temperature": 1.0, "seed": 5},
    "beams": {"beams": BeamParams(width=3), "n": 3},
    "contrast": {"contrast": ContrastParams(alpha=0.5, width=4)},
    "guidance": {"guidance": GuidanceParams(scale=2.0, negative_token_ids=(1, 2, 3))},
}


@pytest.mark.each_value
@pytest.mark.parametrize("way", WAYS)
def test_texts_that_share_states_are_those_of_an_engine_without_caches(engines, folder, rng, way):
    requests = [
        engines.request(str(i), text(rng, rng.randrange(1, 60)), max_tokens=20, **WAYS[way])
        for i in range(3)
    ]
    expected = engines.run_alone(folder, requests)
    engine = engines.make(folder, max_num_seqs=8, max_num_batched_tokens=rng.randrange(20, 90))
    arrivals = [rng.randrange(20) for _ in requests]
    assert engines.told(engines.run(engine, requests, arrivals=arrivals)) == expected


@pytest.mark.each_value
@pytest.mark.parametrize("way", ["completions", "beams"])
def test_a_text_is_as_likely_as_its_parts_were(engines, folder, rng, way):
    """A state that was mixed up would give other log-probabilities than the whole text read at
    once."""
    prompt = text(rng, 40)
    sampling = {"max_tokens": 20, "ignore_eos": True, "logprobs": 0, **WAYS[way]}
    done = engines.run(engines.make(folder), [engines.request("1", prompt, **sampling)])
    for completion in done.values():
        whole = prompt + completion.token_ids
        scored = engines.request("2", whole, max_tokens=0, prompt_logprobs=0)
        scores = engines.run(engines.make(folder), [scored])["2", 0].prompt_logprobs
        expected = [one.logprob for one in scores[len(prompt) :]]
        assert [one.logprob for one in completion.logprobs] == pytest.approx(expected, abs=1e-4)


def test_a_step_that_fails_leaves_no_half_written_state(engines, folder, rng, monkeypatch):
    requests = [
        engines.request(str(i), text(rng, 50), max_tokens=20, ignore_eos=True) for i in range(3)
    ]
    expected = engines.run_alone(folder, requests)
    logits_to_sample, left = ModelRunner._logits_to_sample, [rng.randrange(1, 12)]

    def failing(*args):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("a fault after the states were written")
        return logits_to_sample(*args)

    engine = engines.make(folder)
    monkeypatch.setattr(ModelRunner, "_logits_to_sample", failing)
    assert engines.told(engines.run(engine, requests)) == expected
    assert left[0] < 0
