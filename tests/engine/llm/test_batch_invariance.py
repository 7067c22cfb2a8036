"""Logits have the same bits whatever shares the step, however the text was cut into chunks.

Each test compares the raw logits of every drawn token with those of the same request alone in a
roomy engine without prefix cache: the default path on a CPU, in all dtypes, with fresh inputs.
"""

import pytest
import torch

from engine.quantization.plain import PlainState, UnquantizedMethod
from tests.helpers.llm.logits import (
    SIZES,
    alone,
    check_same_bits,
    cramped,
    logits_of,
    make_requests,
)

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.mark.pairwise("company")
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_company(engines, folder, rng, log, dtype):
    requests = make_requests(engines, rng)
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    engine = engines.make(folder, dtype=dtype, enable_prefix_caching=False)
    arrivals = [rng.randrange(30) for _ in requests]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)


@pytest.mark.pairwise("company")
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_chunks(engines, folder, rng, log, dtype):
    requests = make_requests(engines, rng, count=6)
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    budget = rng.randrange(2, 70)
    engine = engines.make(folder, dtype=dtype, max_num_batched_tokens=budget, max_num_seqs=2)
    check_same_bits(log, lambda: engines.run(engine, requests), expected)


@pytest.mark.pairwise("company")
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefix_hits(engines, folder, rng, log, dtype):
    requests = make_requests(engines, rng, shared_prefix=rng.randrange(16, 60))
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    engine = engines.make(folder, dtype=dtype)
    arrivals = [3 * i for i in range(len(requests))]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)
    assert engine.stats().prefix_cache_hits > 0


@pytest.mark.pairwise("company")
@pytest.mark.parametrize("dtype", DTYPES)
def test_preemption(engines, folder, rng, log, dtype):
    requests = make_requests(engines, rng, count=4, output_tokens=(90, 110))
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    engine = engines.make(folder, dtype=dtype, enable_prefix_caching=False, **cramped(folder))
    check_same_bits(log, lambda: engines.run(engine, requests), expected)
    assert engine.stats().num_preemptions > 0


@pytest.mark.pairwise("company")
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_that_come_and_go(engines, folder, rng, log, dtype, monkeypatch):
    requests = make_requests(engines, rng)
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    engine = engines.make(folder, dtype=dtype)
    step = engine.step

    def step_with_some_threads():
        torch.set_num_threads(rng.choice([1, 2, 3, 5]))
        return step()

    monkeypatch.setattr(engine, "step", step_with_some_threads)
    check_same_bits(log, lambda: engines.run(engine, requests), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixture_that_transformers_runs(engines, tiny_olmoe, rng, log, dtype):
    """Its routers multiply by their own code, in company, in chunks and after prefix hits."""
    folder = tiny_olmoe(**SIZES | {"head_dim": 24})
    requests = make_requests(engines, rng, count=4, shared_prefix=32, output_tokens=(1, 12))
    expected = logits_of(log, lambda: alone(engines, folder, requests, dtype=dtype))
    engine = engines.make(folder, dtype=dtype, max_num_batched_tokens=rng.randrange(8, 70))
    arrivals = [3 * i for i in range(len(requests))]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)
    assert engine.stats().prefix_cache_hits > 0


@pytest.mark.slow
@pytest.mark.drawn(2)
@pytest.mark.parametrize("quantization", ["none", "gguf", "gguf-int8", "int8"])
def test_a_real_model(quantization, engines, smollm2_checkpoint, rng, log):
    requests = [
        engines.request(
            str(i),
            [rng.randrange(1000, 40000) for _ in range(rng.randrange(1, 100))],
            max_tokens=rng.randrange(2, 8),
            ignore_eos=True,
        )
        for i in range(4)
    ]
    path = smollm2_checkpoint.path
    knobs = {"dtype": "bfloat16", "quantization": quantization, "debug_invariants": False}
    # Alone, a prompt is one chunk; beside others it is often two.
    engine = engines.make(path, enable_prefix_caching=False, max_num_batched_tokens=100, **knobs)
    expected = logits_of(log, lambda: [engines.run(engine, [one]) for one in requests])
    arrivals = [rng.randrange(3) for _ in requests]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)


def test_an_order_of_sums_that_depends_on_the_batch_is_found_out(
    engines, tiny_llama, rng, log, monkeypatch
):
    """The comparison can fail: PyTorch's products of plain fp32 weights change with the rows."""
    monkeypatch.setattr(
        UnquantizedMethod,
        "arrange",
        lambda self, weight, bias=None: PlainState(weight, bias),
    )
    folder = tiny_llama(**SIZES)
    requests = make_requests(engines, rng)
    expected = logits_of(log, lambda: alone(engines, folder, requests))
    engine = engines.make(folder, enable_prefix_caching=False)
    found = logits_of(log, lambda: engines.run(engine, requests))
    changed = [key for key in found.keys() & expected.keys() if key[2] == 0]
    assert any(not torch.equal(found[key], expected[key]) for key in changed)
