"""A completion is what it would be alone, whatever the scheduler does around it.

Every test compares with the same requests run one at a time through a roomy engine without prefix
cache: greedy and seeded, in fp32, where a neighbour's rounding hardly ever flips a token.
"""

import random
import zlib

import pytest

VOCAB = 400


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture
def rng(request):
    # Fixed per test: in fp32 another batch size rounds differently, and about one run in 150 has a
    # draw so close to a border that this moves it. Bitwise equality will allow fresh seeds.
    seed = zlib.crc32(request.node.name.encode())
    request.node.user_properties.append(("seed", seed))
    print("seed", seed)
    return random.Random(seed)


def make_requests(engines, rng, count=12, shared_prefix=0, output_tokens=(1, 50)):
    prefix = [rng.randrange(VOCAB) for _ in range(shared_prefix)]
    requests = []
    for i in range(count):
        prompt = prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 70))]
        sampling = {"max_tokens": rng.randrange(*output_tokens), "ignore_eos": True}
        if i % 2:
            sampling |= {
                "temperature": rng.choice([0.7, 1.0, 1.5]),
                "seed": rng.randrange(-(1 << 63), 1 << 63),
                "top_p": rng.choice([1.0, 0.9]),
                "top_k": rng.choice([0, 20]),
                "repetition_penalty": rng.choice([1.0, 1.2]),
                "presence_penalty": rng.choice([0.0, 0.5]),
                "repeat_last_n": rng.choice([-1, 8]),
                "top_n_sigma": rng.choice([0.0, 1.5]),
                "dynatemp_range": rng.choice([0.0, 0.5]),
                "mirostat": rng.choice([0, 0, 2]),
                "xtc_probability": rng.choice([0.0, 0.5]),
                "xtc_threshold": 0.01,
                "dry_multiplier": rng.choice([0.0, 0.8]),
                "bad_words": rng.choice([(), ((7,), (7, 8), (9, 7))]),
                "n": rng.choice([1, 1, 3]),
            }
        requests.append(engines.request(str(i), prompt, **sampling))
    return requests


def texts(done):
    return {key: completion.token_ids for key, completion in done.items()}


def alone(engines, folder, requests):
    engine = engines.make(folder, enable_prefix_caching=False, max_num_batched_tokens=512)
    expected = {}
    for request in requests:
        expected |= texts(engines.run(engine, [request]))
    return expected


def test_batched(engines, folder, rng):
    requests = make_requests(engines, rng)
    engine = engines.make(folder, enable_prefix_caching=False)
    assert texts(engines.run(engine, requests)) == alone(engines, folder, requests)


@pytest.mark.parametrize("budget", [1, 7, 16, 33, 64])
def test_any_token_budget(engines, folder, rng, budget):
    requests = make_requests(engines, rng, count=6)
    engine = engines.make(folder, max_num_batched_tokens=budget, max_num_seqs=min(budget, 4))
    assert texts(engines.run(engine, requests)) == alone(engines, folder, requests)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_preemption(engines, folder, rng, policy):
    # Long answers: admission sees only what is known of a text, so growth must run into the limit.
    requests = make_requests(engines, rng, output_tokens=(50, 100))
    engine = engines.make(folder, num_kv_blocks=14, max_model_len=14 * 16, scheduling_policy=policy)
    assert texts(engines.run(engine, requests)) == alone(engines, folder, requests)
    assert engine.stats().num_preemptions > 0


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


def test_arrival_order(engines, folder, rng):
    requests = make_requests(engines, rng)
    expected = alone(engines, folder, requests)
    rng.shuffle(requests)
    arrivals = [rng.randrange(40) for _ in requests]
    assert texts(engines.run(engines.make(folder), requests, arrivals=arrivals)) == expected


def test_cancelled_neighbours(engines, folder, rng):
    requests = make_requests(engines, rng)
    expected = alone(engines, folder, requests)
    doomed = {r.request_id: rng.randrange(1, 20) for r in rng.sample(requests, 5)}
    engine = engines.make(folder, num_kv_blocks=24, max_model_len=24 * 16)
    done = engines.run(engine, requests, aborts=doomed)
    for request in requests:
        for index in range(request.sampling.n):
            key = request.request_id, index
            if request.request_id not in doomed:
                assert done[key].token_ids == expected[key]
            elif key in done:
                got = done[key].token_ids
                assert got == expected[key][: len(got)]
    assert engine.stats().kv_blocks_used == 0


def test_salts_do_not_share(engines, folder, rng):
    prompt = [rng.randrange(VOCAB) for _ in range(50)]
    engine = engines.make(folder)
    cached = []
    for i, salt in enumerate(["a", "b", "a", None]):
        request = engines.request(str(i), prompt, max_tokens=1, cache_salt=salt)
        [completion] = engines.run(engine, [request]).values()
        cached.append(completion.num_cached_tokens)
    assert cached == [0, 0, 48, 0]
