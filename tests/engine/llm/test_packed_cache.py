"""Keys and values in 8 bits: more tokens in the same memory, and texts that no neighbour, chunk,
prefix or guess changes."""

import random
from dataclasses import replace

import pytest
import torch

from engine.contract.kv_layout import KvShape, LayerGroup
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError
from engine.llm.runner.kv_storage import KvStorage
from engine.llm.start import sizing
from tests.helpers.llm.logits import (
    ATTENDING,
    SIZES,
    alone,
    check_same_bits,
    logits_of,
    make_requests,
    number_of_changes,
)

KINDS = ["int8", "fp8"]
VOCAB = 400


@pytest.fixture(scope="module", params=ATTENDING)
def folder(request):
    return request.getfixturevalue(request.param)(**SIZES)


@pytest.mark.parametrize(
    ("kind", "torch_type"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)]
)
def test_a_block_holds_numbers_and_scales_in_one_run(kind, torch_type):
    storage = KvStorage(
        num_blocks=6,
        layer_groups=[LayerGroup(layers, None, KvShape(3, 6)) for layers in [(0, 2), (1,)]],
        block_size=5,
        dtype=torch_type,
        device=torch.device("cpu"),
    )
    assert storage._block_bytes == 2 * 2 * 3 * 5 * (6 + 4)
    for layer, scales in zip(storage.layers, storage.scales, strict=True):
        assert tuple(layer.shape) == (6, 2, 3, 5, 6) and layer.dtype == torch_type
        assert tuple(scales.shape) == (6, 2, 3, 5) and scales.dtype == torch.float32
    storage._pool.random_(0, 255)
    before = storage._pool.clone()
    storage.copy([(1, 4)])
    assert torch.equal(storage._pool[4], before[1])
    storage.layers[0][2].view(torch.int8).fill_(1)
    storage.scales[0][2] = 1.0
    changed = (storage._pool != before).any(-1).nonzero().flatten().tolist()
    assert set(changed) <= {2, 4}
    storage._written[2] = True
    storage.clear([2])
    assert not storage._pool[2].any()


@pytest.mark.each_value
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 1.88), ("float32", 3.76)])
@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_in_the_same_memory(engines, folder, dtype, least, kind):
    """Heads of 64: 68 bytes where bfloat16 takes 128."""
    knobs = {"dtype": dtype, "num_kv_blocks": None, "kv_cache_memory_gib": 0.05}
    plain = engines.make(folder, **knobs).stats().kv_blocks_total
    packed = engines.make(folder, kv_cache_dtype=kind, **knobs).stats().kv_blocks_total
    assert packed / plain > least
    assert EngineConfig(kv_cache_dtype=kind).resolved_kv_cache_dtype == kind


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_company_chunks_prefixes_and_preemption(engines, folder, rng, log, dtype, kind):
    packed = {"dtype": dtype, "kv_cache_dtype": kind}
    requests = make_requests(
        engines, rng, count=4, shared_prefix=rng.randrange(16, 60), output_tokens=(60, 80)
    )
    expected = logits_of(log, lambda: alone(engines, folder, requests, **packed))
    budget = rng.randrange(20, 64)
    few = {"num_kv_blocks": 26, "max_model_len": 14 * 16, "max_num_batched_tokens": budget}
    engine = engines.make(folder, **packed, **few)
    arrivals = [rng.randrange(30) for _ in requests]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)
    [first, *_] = requests
    first = replace(first, sampling=replace(first.sampling, max_tokens=1))
    plain = logits_of(log, lambda: alone(engines, folder, [first], dtype=dtype))
    assert number_of_changes({key: expected[key] for key in plain}, plain) > 0


@pytest.mark.each_value
@pytest.mark.usefixtures("cheap_rows")
@pytest.mark.parametrize("kind", KINDS)
def test_guesses_change_no_text(engines, folder, rng, kind):
    stock = [rng.randrange(VOCAB) for _ in range(7)]
    requests = [
        engines.request(
            str(i),
            (stock * 8)[: rng.randrange(9, 50)],
            max_tokens=25,
            ignore_eos=True,
            temperature=rng.choice([0.0, 0.7]),
            seed=rng.randrange(1 << 60),
            logprobs=2,
        )
        for i in range(4)
    ]
    knobs = {"kv_cache_dtype": kind, "dtype": "bfloat16"}
    expected = engines.run(engines.make(folder, **knobs), requests)
    engine = engines.make(folder, num_speculative_tokens=6, **knobs)
    assert engines.run(engine, requests) == expected


def test_what_reads_no_packed_cache_is_refused(monkeypatch):
    monkeypatch.setattr(sizing.native, "library", lambda: None)
    config = ResolvedConfig.__new__(ResolvedConfig)
    object.__setattr__(config, "kv_cache_dtype", random.choice(KINDS))
    object.__setattr__(config, "device", "cpu")
    with pytest.raises(ModelLoadError, match=r"needs the C\+\+ operations"):
        sizing.check_kv_cache_dtype(config, 512)
    object.__setattr__(config, "device", "cuda")
    monkeypatch.setattr(sizing.paged_attention, "implementations", dict)
    with pytest.raises(ModelLoadError, match="needs Triton"):
        sizing.check_kv_cache_dtype(config, 256)
    with pytest.raises(ModelLoadError, match="this model's have 512"):
        sizing.check_kv_cache_dtype(config, 512)
    object.__setattr__(config, "kv_cache_dtype", "float32")
    sizing.check_kv_cache_dtype(config, 512)
