"""A completion is what it would be alone, whatever the scheduler does around it.

Every test compares with the same requests run one at a time through a roomy engine without prefix
cache: greedy and seeded, in fp32, where a neighbour's rounding hardly ever flips a token.
"""

import random
import zlib

import pytest

from tests.helpers.llm.requests import alone, make_requests, texts

FEW_BLOCKS = {"num_kv_blocks": 14, "max_model_len": 14 * 16}


@pytest.fixture
def rng(request):
    """A generator with a seed of its own for each test, the same in every run."""
    # In fp32 another batch size rounds differently, and about one run in 150 has a draw so close
    # to a border that this moves it.
    return random.Random(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture(scope="module")
def short(engines, folder):
    """Requests, and their texts when each runs alone."""
    requests = make_requests(engines, random.Random(1))
    return requests, alone(engines, folder, requests)


@pytest.fixture(scope="module")
def long(engines, folder):
    """The same with long answers: admission sees only what is known of a text, so growth must run
    into the limit."""
    requests = make_requests(engines, random.Random(2), output_tokens=(50, 100))
    return requests, alone(engines, folder, requests)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"enable_prefix_caching": False},
        {"async_scheduling": "on"},
        {"max_num_batched_tokens": 1, "max_num_seqs": 1},
        {"max_num_batched_tokens": 7, "max_num_seqs": 4},
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"max_num_batched_tokens": 33, "max_num_seqs": 4},
        {"max_num_batched_tokens": 64, "max_num_seqs": 4},
        {**FEW_BLOCKS, "scheduling_policy": "fcfs"},
        {**FEW_BLOCKS, "scheduling_policy": "priority"},
        {**FEW_BLOCKS, "async_scheduling": "on"},
    ],
    ids=str,
)
def test_any_arrivals_budget_and_memory(engines, folder, short, long, rng, knobs):
    requests, expected = long if "num_kv_blocks" in knobs else short
    engine = engines.make(folder, **knobs)
    requests = rng.sample(requests, len(requests))
    arrivals = [rng.randrange(20) for _ in requests]
    assert texts(engines.run(engine, requests, arrivals=arrivals)) == expected
    assert engine.stats().kv_blocks_used == 0
    assert (engine.stats().num_preemptions > 0) == ("num_kv_blocks" in knobs)


def test_prefix_cache_hits(engines, folder, rng):
    requests = make_requests(engines, rng, shared_prefix=50)
    engine = engines.make(folder)
    done = engines.run(engine, requests, arrivals=[4 * i for i in range(len(requests))])
    assert texts(done) == alone(engines, folder, requests)
    assert sum(c.num_cached_tokens for c in done.values()) > 0


def test_prefix_cache_after_eviction(engines, folder, rng):
    requests = make_requests(engines, rng, count=6, shared_prefix=40)
    engine = engines.make(folder, num_kv_blocks=16, max_model_len=16 * 16)
    expected = alone(engines, folder, requests)
    for _ in range(2):
        hits_before = engine.stats().prefix_cache_hits
        for request in requests:
            assert texts(engines.run(engine, [request])).items() <= expected.items()
        assert engine.stats().prefix_cache_hits > hits_before


def test_cancelled_neighbours(engines, folder, short, rng):
    requests, expected = short
    doomed = {r.request_id: rng.randrange(1, 20) for r in rng.sample(requests, 5)}
    engine = engines.make(folder, num_kv_blocks=24, max_model_len=24 * 16)
    done = engines.run(engine, requests, aborts=doomed)
    for key, whole in expected.items():
        if key[0] not in doomed:
            assert done[key].token_ids == whole
        elif key in done:
            assert done[key].token_ids == whole[: len(done[key].token_ids)]
    assert engine.stats().kv_blocks_used == 0
