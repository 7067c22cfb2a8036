"""Classifier-free guidance against transformers'; neither neighbours nor steps change it."""

import random
from dataclasses import replace

import pytest
import torch

from engine.contract.groups import GuidanceParams
from engine.contract.request import FinishReason
from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import NewSequence, SampleRow
from engine.llm.sampling.guidance import Guidance, guided

SEED = 4
"""Fixed, as random models now and then have two tokens within the rounding of fp32."""


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=SEED)


def prompt(rng, length):
    return [rng.randrange(400) for _ in range(length)]


def guidance(scale, negative):
    return {"guidance": GuidanceParams(scale=scale, negative_token_ids=tuple(negative))}


@torch.inference_mode()
def theirs(model, prompt_ids, scale, negative, **options):
    found = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
        guidance_scale=scale,
        negative_prompt_ids=None if negative is None else torch.tensor([negative]),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return found[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("lengths", [(20, 7), (5, 40), (33, None)], ids=str)
def test_the_texts_are_transformers(engines, folder, model, scale, lengths):
    rng = random.Random(SEED)
    prompt_ids = prompt(rng, lengths[0])
    negative = None if lengths[1] is None else prompt(rng, lengths[1])
    for penalty in (1.0, 1.2):
        expected = theirs(model, prompt_ids, scale, negative, repetition_penalty=penalty)
        request = engines.request(
            "a",
            prompt_ids,
            max_tokens=30,
            ignore_eos=True,
            repetition_penalty=penalty,
            **guidance(scale, negative or prompt_ids[-1:]),
        )
        done = engines.run(engines.make(folder), [request])
        assert done["a", 0].token_ids == expected
        assert done["a", 0].finish_reason is FinishReason.LENGTH


@pytest.fixture(scope="module")
def requests(engines):
    rng = random.Random(SEED)
    drawn = {"max_tokens": 40, "temperature": 1.0, "logprobs": 2, "ignore_eos": True}
    return [
        engines.request("a", prompt(rng, 60), seed=1, **drawn, **guidance(2.0, prompt(rng, 9))),
        engines.request("b", prompt(rng, 25), seed=2, **drawn, n=2),
        engines.request(
            "c",
            prompt(rng, 8),
            seed=3,
            **drawn,
            frequency_penalty=0.5,
            prompt_logprobs=1,
            **guidance(0.3, prompt(rng, 70)),
        ),
        engines.request("d", prompt(rng, 90), max_tokens=60),
        engines.request("e", prompt(rng, 30), seed=4, **drawn, **guidance(4.0, prompt(rng, 30))),
        engines.request(
            "f", prompt(rng, 40), seed=5, n=3, **drawn, **guidance(2.0, prompt(rng, 5))
        ),
    ]


@pytest.fixture(scope="module")
def alone(engines, folder, requests):
    return engines.run_alone(folder, requests)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"async_scheduling": "on"},
        {"max_num_batched_tokens": 19},
        {"num_kv_blocks": 22},
        {"num_kv_blocks": 22, "enable_prefix_caching": False, "max_num_batched_tokens": 40},
        {"max_num_seqs": 3},
        {"num_speculative_tokens": 4, "prompt_lookup_min": 1},
    ],
    ids=str,
)
def test_neighbours_change_no_bit(engines, folder, requests, alone, knobs, rng):
    engine = engines.make(folder, **knobs)
    arrivals = [rng.randrange(12) for _ in requests]
    done = engines.run(engine, requests, arrivals=arrivals)
    assert engines.told(done) == alone
    assert engine.stats().kv_blocks_used == 0
    assert not engine._executor._guidance._main_of.keys() - _last_finished(engine)


def _last_finished(engine):
    """Sequences whose end the executor will learn with the next step."""
    return set(engine._scheduler._sequences.take_finished())


def test_an_abort_leaves_nothing(engines, folder, requests, alone):
    for step in (1, 2, 5, 9):
        engine = engines.make(folder)
        done = engines.told(engines.run(engine, requests[:3], aborts={"a": step}))
        for key in ("b", 0), ("b", 1), ("c", 0):
            assert done[key] == alone[key]
        assert engine.stats().kv_blocks_used == 0 and engine.stats().num_running == 0


def test_texts_of_a_prompt_are_drawn_and_left_out_one_by_one(engines, folder, requests, alone):
    several = requests[-1]
    texts = [alone["f", index].token_ids for index in range(3)]
    assert len(set(map(tuple, texts))) == 3
    first = replace(several, request_id="g", sampling=replace(several.sampling, n=1))
    engine = engines.make(folder)
    engine.add(first)
    engine.add(several)
    told = {}
    for step in range(10_000):
        if not engine.has_work():
            break
        if step == 7:
            engine.abort("f", 1)
        for event in engine.step()[0]:
            assert step < 7 or (event.request_id, event.index) != ("f", 1)
            told.setdefault((event.request_id, event.index), []).extend(event.token_ids)
    assert told["g", 0] == told["f", 0] == texts[0]
    assert told["f", 2] == texts[2]
    assert told["f", 1] == texts[1][: len(told["f", 1])] and len(told["f", 1]) < 40
    assert engine.stats().kv_blocks_used == 0


def test_a_text_ends_where_the_guide_s_context_ends(engines, folder):
    rng = random.Random(SEED)
    engine = engines.make(folder, max_model_len=64)
    request = engines.request("a", prompt(rng, 10), max_tokens=50, **guidance(1.5, prompt(rng, 60)))
    done = engines.run(engine, [request])
    assert len(done["a", 0].token_ids) == 4
    assert done["a", 0].finish_reason is FinishReason.LENGTH


def test_a_pair_that_outgrows_the_pool_fails_alone(engines, folder):
    rng = random.Random(SEED)
    engine = engines.make(folder, num_kv_blocks=8, block_size=16)
    other = engines.request("b", prompt(rng, 10), max_tokens=20, ignore_eos=True)
    request = engines.request("a", prompt(rng, 10), max_tokens=80, **guidance(1.5, prompt(rng, 40)))
    done = engines.run(engine, [request, other])
    assert done["a", 0].finish_reason is FinishReason.ERROR
    assert done["b", 0].finish_reason is FinishReason.LENGTH
    assert engine.stats().kv_blocks_used == 0


def test_stop_tokens_and_penalties_are_the_prompt_s(engines, folder, alone, requests):
    (first, *_), whole = requests, alone["a", 0].token_ids
    stop = whole[10]
    request = replace(first, sampling=replace(first.sampling, stop_token_ids=(stop,)))
    done = engines.run(engines.make(folder), [request])
    assert done["a", 0].token_ids == whole[: whole.index(stop) + 1]
    assert done["a", 0].finish_reason is FinishReason.STOP


def test_halves_wait_for_each_other_in_any_order():
    table = Guidance()
    params = SamplingParams(**guidance(2.0, [1]))
    for seq_id, guides in ((5, None), (6, 5)):
        table.add(NewSequence(seq_id, [1], params, 0, 0, (), guides=guides))
    table.add(NewSequence(7, [1], SamplingParams(), 0, 0, ()))
    logits = torch.randn(3, 11)
    together = table.ready(logits, [SampleRow(5, 0), SampleRow(7, 3), SampleRow(6, 0)])
    assert together.rows == [SampleRow(7, 3), SampleRow(5, 0)]
    assert (together.receivers, together.waiting) == ([7, 6], [5])
    expected = guided(logits[0], logits[2], 2.0)
    assert torch.equal(together.logits, torch.stack([logits[1], expected]))
    for order in ((5, 6), (6, 5)):
        rows = {5: logits[0:1], 6: logits[2:3]}
        # What came of a step that was in vain comes again, and what is too old does not count.
        assert table.ready(rows[order[0]] + 1, [SampleRow(order[0], 0)]).waiting == [order[0]]
        assert table.ready(rows[order[0]], [SampleRow(order[0], 1)]).waiting == [order[0]]
        apart = table.ready(rows[order[1]], [SampleRow(order[1], 1)])
        assert (apart.rows, apart.receivers) == ([SampleRow(5, 1)], [order[1]])
        assert torch.equal(apart.logits[0], expected)
    table.ready(logits[:1], [SampleRow(5, 2)])
    table.add(NewSequence(6, [1], params, 0, 0, (), guides=5))
    assert table._halves, "what is kept is another one's"
    table.add(NewSequence(5, [1], params, 0, 0, ()))
    assert not table._halves
    table.ready(logits[:1], [SampleRow(5, 2)])
    for seq_id in (6, 5, 7, 8):
        table.remove(seq_id)
    assert not (table._halves or table._main_of or table._scales)


def test_impossible_tokens_stay_impossible():
    own = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
    other = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf])
    found = guided(own, other, 1.5)
    assert found[1] == -torch.inf and found[[0, 2, 3]].isfinite().all()
