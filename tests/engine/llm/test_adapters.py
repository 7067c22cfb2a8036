"""Texts of adapters: each as if its adapter were alone in the engine, and the base's as if there
were none, bit for bit."""

from dataclasses import replace

import pytest
from peft_adapters import write_adapter

from engine.errors import UnknownAdapter

pytestmark = pytest.mark.usefixtures("cheap_rows")
VOCAB = 400
NAMES = ("a", "b", None)


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11, head_dim=64)


@pytest.fixture(scope="module")
def lora(folder, tmp_path_factory):
    """The setting for two adapters of different ranks and layers."""
    places = [tmp_path_factory.mktemp(name) for name in "ab"]
    write_adapter(folder, places[0], 1, r=5, rank_pattern={"v_proj": 9})
    write_adapter(folder, places[1], 2, r=12, target_modules=("k_proj", "o_proj", "up_proj"))
    return tuple(f"{name}={place}" for name, place in zip("ab", places, strict=True))


def make_requests(engines, rng, count=9, output_tokens=(1, 40)):
    prefix = [rng.randrange(VOCAB) for _ in range(40)]
    requests = []
    for i in range(count):
        prompt = prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))]
        sampling = {"temperature": rng.choice([0.0, 0.9]), "seed": i, "n": rng.choice([1, 1, 3])}
        request = engines.request(
            str(i),
            prompt,
            max_tokens=rng.randrange(*output_tokens),
            ignore_eos=True,
            logprobs=1,
            prompt_logprobs=1 if i == 4 else None,
            **sampling,
        )
        requests.append(replace(request, adapter=NAMES[i % 3]))
    return requests


def outcome(done):
    """Everything that a client gets, logits' bits included."""
    return {key: (one.token_ids, one.logprobs, one.prompt_logprobs) for key, one in done.items()}


def alone(engines, folder, lora, requests, **knobs):
    """Each request in an engine that has its adapter only, without anything that could go wrong."""
    plain = {"enable_prefix_caching": False, "record_steps": False} | knobs
    found = {}
    for name in NAMES:
        own = tuple(entry for entry in lora if entry.partition("=")[0] == name)
        engine = engines.make(folder, lora=own, **plain)
        for request in requests:
            if request.adapter == name:
                found |= outcome(engines.run(engine, [request]))
    return found


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"max_num_batched_tokens": 9, "max_num_seqs": 5},
        {"num_kv_blocks": 14, "max_model_len": 14 * 16},
        {"num_speculative_tokens": 6, "prompt_lookup_min": 1},
        {"num_speculative_tokens": 6, "prompt_lookup_min": 1, "async_scheduling": "on"},
        {"record_steps": False},
        {"async_scheduling": "on"},
    ],
    ids=lambda knobs: ",".join(knobs) or "default",
)
def test_any_mixture(engines, folder, lora, rng, knobs):
    tight = "num_kv_blocks" in knobs
    requests = make_requests(engines, rng, output_tokens=(50, 90) if tight else (1, 40))
    # The later ones find the prefix that one of the earlier ones has computed.
    arrivals = [rng.randrange(6) + 30 * (i > 5) for i in range(len(requests))]
    kept = {name: knobs[name] for name in ("dtype", "max_model_len") if name in knobs}
    expected = alone(engines, folder, lora, requests, **kept)
    engine = engines.make(folder, lora=lora, **knobs)
    assert outcome(engines.run(engine, requests, arrivals=arrivals)) == expected
    stats = engine.stats()
    assert stats.kv_blocks_used == 0
    assert stats.prefix_cache_hits > 0
    assert stats.num_preemptions > 0 or not tight


def test_recorded_steps_carry_adapters(engines, folder, lora, rng):
    requests = make_requests(engines, rng, 6, (60, 61))
    requests = [
        replace(r, sampling=replace(r.sampling, n=1), adapter=NAMES[i % 3])
        for i, r in enumerate(requests)
    ]
    engine = engines.make(folder, lora=lora)
    found = outcome(engines.run(engine, requests))
    recorded = {size.has_adapters for size in engine._executor._runner._graphs._graphs}
    assert recorded == {True}
    found |= outcome(engines.run(engine, [r for r in requests if r.adapter is None]))
    recorded = {size.has_adapters for size in engine._executor._runner._graphs._graphs}
    assert recorded == {True, False}
    assert found == alone(engines, folder, lora, requests)


def test_what_one_adapter_has_cached_serves_no_other(engines, folder, lora):
    engine = engines.make(folder, lora=lora)
    texts = {}
    for turn in range(2):
        for name in NAMES:
            request = replace(engines.request("x", list(range(2, 60))), adapter=name)
            (done,) = engines.run(engine, [request]).values()
            assert done.num_cached_tokens == 48 * turn
            assert texts.setdefault(name, done.token_ids) == done.token_ids
    assert len(set(map(tuple, texts.values()))) == len(NAMES)


def test_a_broken_adapter_harms_nobody(engines, folder, lora, tmp_path, rng):
    requests = [r for r in make_requests(engines, rng) if r.adapter != "b"]
    expected = outcome(engines.run(engines.make(folder, lora=lora[:1]), requests))
    engine = engines.make(folder, lora=(f"c={tmp_path}", *lora))
    assert outcome(engines.run(engine, requests)) == expected
    for name in ("c", "d"):
        with pytest.raises(UnknownAdapter):
            engine.add(replace(requests[0], adapter=name))


def test_an_adapter_whose_logits_are_not_finite_ends_its_own_requests(
    engines, folder, lora, tmp_path
):
    write_adapter(folder, tmp_path, lora_alpha=1e30)
    requests = [
        replace(engines.request(str(i), [5, 6, 7]), adapter=name)
        for i, name in enumerate(("wild", "a", None))
    ]
    engine = engines.make(folder, lora=(f"wild={tmp_path}", *lora))
    done = engines.run(engine, requests)
    assert [done[str(i), 0].finish_reason for i in range(3)] == ["error", "length", "length"]
    assert done["1", 0].token_ids == engines.run(engine, requests[1:2])["1", 0].token_ids
