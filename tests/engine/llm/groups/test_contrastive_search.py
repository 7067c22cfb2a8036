"""Contrastive search against its paper's definition, written out over whole texts; neither
neighbours nor steps change a text."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from engine.contract.groups import ContrastParams
from engine.contract.request import FinishReason
from engine.contract.sampling_params import SamplingParams
from engine.errors import InvalidParameter, InvariantViolation, QueueFull
from engine.llm.decision import GroupBlocks, NewSequence, ScheduledSequence
from engine.llm.groups import contrastive_search
from engine.llm.runner.batch import lay_out
from engine.llm.runner.text_states import TextStates
from tests.helpers.llm.paged_executor import make_config, make_request, make_scheduler

SEED = 4
"""Fixed, as random models now and then have two candidates within the rounding of fp32."""


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma3"])
def folder(request):
    return request.getfixturevalue(request.param)(seed=SEED)


def prompt(rng, length):
    return [rng.randrange(400) for _ in range(length)]


def contrast(alpha=0.6, width=4):
    return {"contrast": ContrastParams(alpha=alpha, width=width)}


@torch.inference_mode()
def by_definition(model, prompt_ids, alpha, width, num_tokens, never=()):
    """Su et al. 2022, equation 5: all is computed anew for each token."""
    text = list(prompt_ids)
    for _ in range(num_tokens):
        probabilities = model(torch.tensor([text])).logits[0, -1].softmax(-1)
        probabilities[list(never)] = 0.0
        likeliest = probabilities.topk(width)
        scores = []
        for probability, token_id in zip(*likeliest, strict=True):
            found = model(torch.tensor([[*text, token_id]]), output_hidden_states=True)
            *before, state = found.hidden_states[-1][0]
            similarity = max(torch.cosine_similarity(state, one, dim=0) for one in before)
            scores.append((1 - alpha) * probability - alpha * similarity)
        text.append(int(likeliest.indices[torch.stack(scores).argmax()]))
    return text[len(prompt_ids) :]


def test_the_texts_are_those_of_the_definition(engines, folder, model):
    rng = random.Random(SEED)
    engine = engines.make(folder)
    texts = []
    for length, alpha, width in ((20, 0.6, 4), (1, 0.1, 2), (37, 1.0, 6)):
        prompt_ids = prompt(rng, length)
        expected = by_definition(model, prompt_ids, alpha, width, 12)
        options = {"max_tokens": 12, "ignore_eos": True}
        request = engines.request("a", prompt_ids, **options, **contrast(alpha, width))
        done = engines.run(engine, [request, engines.request("b", prompt_ids, **options)])
        assert done["a", 0].token_ids == expected
        assert done["a", 0].finish_reason is FinishReason.LENGTH
        texts.append((expected, done["b", 0].token_ids))
    assert any(found != greedy for found, greedy in texts), "the penalty changes something"


def test_tokens_that_the_model_must_never_write(engines, folder, model, tmp_path):
    prompt_ids, options = prompt(random.Random(SEED), 20), {"max_tokens": 8, "ignore_eos": True}
    never = sorted(set(by_definition(model, prompt_ids, 0.6, 4, 8)))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": never}))
    request = engines.request("a", prompt_ids, **options, **contrast())
    [done] = engines.run(engines.make(tmp_path), [request]).values()
    assert done.token_ids == by_definition(model, prompt_ids, 0.6, 4, 8, never)


@pytest.fixture(scope="module")
def requests(engines):
    rng = random.Random(SEED)
    some = {"max_tokens": 40, "ignore_eos": True, "logprobs": 2}
    drawn = {"temperature": 1.0, "seed": 1, "max_tokens": 40, "ignore_eos": True}
    return [
        engines.request("a", prompt(rng, 60), **some, **contrast()),
        engines.request("b", prompt(rng, 25), n=2, **drawn),
        engines.request("c", prompt(rng, 8), prompt_logprobs=1, **some, **contrast(0.9, 3)),
        engines.request("d", prompt(rng, 90), max_tokens=60),
        engines.request("e", prompt(rng, 30), **some, **contrast(0.3, 2)),
    ]


@pytest.fixture(scope="module")
def alone(engines, folder, requests):
    return engines.run_alone(folder, requests)


@pytest.mark.each_value
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"async_scheduling": "on", "num_threads": 2},
        {"max_num_batched_tokens": 19},
        {"num_kv_blocks": 30},
        {"num_kv_blocks": 30, "enable_prefix_caching": False, "max_num_batched_tokens": 40},
        {"max_num_seqs": 4},
        {"num_speculative_tokens": 4, "prompt_lookup_min": 1},
    ],
    ids=str,
)
def test_neighbours_change_no_bit(engines, folder, requests, alone, knobs, rng):
    num_groups = len(engines.make(folder)._scheduler._layout.windows)
    if "num_kv_blocks" in knobs:  # per layer group
        knobs = knobs | {"num_kv_blocks": num_groups * knobs["num_kv_blocks"]}
    engine = engines.make(folder, **knobs)
    arrivals = [rng.randrange(12) for _ in requests]
    done = engines.run(engine, requests, arrivals=arrivals)
    assert engines.told(done) == alone
    assert engine.stats().kv_blocks_used == 0
    # Again, over what the first time left in the prefix cache: a text's states are not in there.
    done = engines.run(engine, requests[::-1])
    assert engines.told(done) == alone
    left = engine._executor._states
    assert not left._texts.keys() - set(engine._scheduler._sequences.take_finished())


def test_an_abort_leaves_nothing(engines, folder, requests, alone):
    engine = engines.make(folder)
    for step in (1, 2, 5, 9):
        done = engines.told(engines.run(engine, requests[:3], aborts={"a": step}))
        for key in ("b", 0), ("b", 1), ("c", 0):
            assert done[key] == alone[key]
        assert engine.stats().kv_blocks_used == 0 and engine.stats().num_running == 0


def test_what_ends_a_text(engines, folder, requests, alone):
    first, whole = requests[0], alone["a", 0]
    stop = whole.token_ids[10]
    request = replace(first, sampling=replace(first.sampling, stop_token_ids=(stop,)))
    (done,) = engines.run(engines.make(folder), [request]).values()
    assert done.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert done.logprobs == whole.logprobs[: len(done.token_ids)]
    assert done.finish_reason is FinishReason.STOP
    short = replace(first, sampling=replace(first.sampling, max_tokens=200))
    (done,) = engines.run(engines.make(folder, max_model_len=70), [short]).values()
    assert (done.token_ids, done.finish_reason) == (whole.token_ids[:10], FinishReason.LENGTH)


def test_a_search_that_outgrows_the_pool_fails_alone(engines, tiny_llama):
    rng = random.Random(SEED)
    engine = engines.make(tiny_llama(seed=SEED), num_kv_blocks=12, block_size=16)
    other = engines.request("b", prompt(rng, 10), max_tokens=20, ignore_eos=True)
    request = engines.request("a", prompt(rng, 10), max_tokens=80, ignore_eos=True, **contrast())
    done = engines.run(engine, [request, other])
    assert done["a", 0].finish_reason is FinishReason.ERROR
    assert len(done["a", 0].token_ids) == 3 * 16 - 10
    assert done["b", 0].finish_reason is FinishReason.LENGTH
    assert engine.stats().kv_blocks_used == 0


def _scheduled(seq_id, start, num_tokens, follows=None):
    return ScheduledSequence(
        seq_id=seq_id,
        token_ids=[1] * num_tokens,
        start=start,
        blocks=[GroupBlocks(list(range(100)))],
        num_draws=1,
        num_output_tokens=0,
        follows=follows,
    )


def test_states_are_kept_by_position():
    table, states = TextStates(), torch.randn(1400, 6)
    for seq_id, params in ((1, contrast()), (2, contrast()), (3, {})):
        table.add(NewSequence(seq_id, [1], SamplingParams(**params), 0, 0, ()))

    def compare(*scheduled, rows):
        laid_out = lay_out(scheduled, 16)
        found = table.compare(laid_out, rows)
        return {seq_id: one.wait().item() for seq_id, one in found.items()}

    def greatest(text, state):
        return torch.cosine_similarity(text, state.unsqueeze(0)).max().item()

    # In chunks, beside a sequence that is not compared; longer than what is multiplied at a time.
    for start, end in ((0, 250), (250, 260), (260, 1300)):
        chunk = _scheduled(1, start, end - start)
        other = _scheduled(3, 5, 1)
        rows = torch.cat([states[:1], states[start:end]])
        assert compare(chunk, other, rows=rows) == {}
    text, first, second = states[:1300], states[1300], states[1301]
    rows = torch.stack([first, second])
    found = compare(_scheduled(1, 1300, 1, 1), _scheduled(2, 1300, 1, 1), rows=rows)
    expected = {1: greatest(text, first), 2: greatest(text, second)}
    assert found == pytest.approx(expected, abs=1e-6)
    # The second one was taken. What follows it comes in two steps.
    text, third, fourth = torch.cat([text, second[None]]), states[1302], states[1303]
    found = compare(_scheduled(2, 1301, 1, 2), rows=third[None])
    found |= compare(_scheduled(1, 1301, 1, 2), rows=fourth[None])
    expected = {2: greatest(text, third), 1: greatest(text, fourth)}
    assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InvariantViolation, match="not there"):
        compare(_scheduled(2, 1310, 1, 2), rows=third[None])
    with pytest.raises(InvariantViolation, match="missing"):
        compare(_scheduled(2, 1310, 1), rows=third[None])
    table.add(NewSequence(1, [1], SamplingParams(**contrast()), 0, 0, ()))
    with pytest.raises(InvariantViolation, match="beginning"):
        compare(_scheduled(1, 4, 2), rows=states[:2])
    for seq_id in (1, 2, 3, 4):
        table.remove(seq_id)
    assert not (table._texts or table._last)


def test_hidden_states_have_a_limit(monkeypatch):
    monkeypatch.setattr(contrastive_search, "MAX_COMPARED_TOKENS", 50)
    scheduler = make_scheduler(make_config())
    with pytest.raises(InvalidParameter, match=r"are 51 tokens together; .* limit is 50"):
        scheduler.add(make_request("a", 11, 40, **contrast()))
    scheduler.add(make_request("b", 11, 39, **contrast()))
    with pytest.raises(QueueFull, match=r"hold 50 tokens .* can have 50"):
        scheduler.add(make_request("c", 1, 1, **contrast()))
    scheduler.add(make_request("d", 11, 40))
    scheduler.abort("b")
    scheduler.add(make_request("c", 11, 39, **contrast()))
