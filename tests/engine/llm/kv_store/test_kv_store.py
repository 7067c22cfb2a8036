"""Prompts that are known again after a restart, bit for bit, and what must not be found."""

import os
import random
import threading
import time

import pytest

from engine.errors import ModelLoadError
from engine.llm.cache.cache_journal import StoredBlocks
from engine.llm.cache.prefix_cache import chain_root, extend_chain
from engine.llm.kv_store import restoring
from engine.llm.kv_store.block_files import BlockFiles
from tests.helpers.llm.logits import SIZES, VOCAB, alone, check_same_bits, logits_of, make_requests
from tests.helpers.llm.requests import texts

BLOCK = 16


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma3", "tiny_deepseek"])
def folder(request):
    """One group of layers; groups with windows; a key that is the value, too."""
    return request.getfixturevalue(request.param)(**SIZES)


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return tiny_llama(seed=11)


def opened(engines, folder, path, digest="weights", **knobs):
    engine = engines.make(folder, kv_store=str(path), **knobs)
    engine.identify(digest)
    return engine


def prompt_of(num_blocks):
    return [random.randrange(VOCAB) for _ in range(num_blocks * BLOCK + 1)]


def write(engines, engine, *requests):
    done = engines.run(engine, list(requests))
    engine.shutdown()
    assert engine.stats().kv_store.num_blocks_written
    return texts(done)


def read(engines, engine, *requests):
    """The texts, the prompt tokens that were known, and the counts."""
    done = engines.run(engine, list(requests))
    known = sum(answer.num_cached_tokens for answer in done.values())
    return texts(done), known, engine.stats().kv_store


@pytest.mark.each_value
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"kv_cache_dtype": "int8"},
        {"dtype": "bfloat16", "kv_cache_dtype": "fp8", "async_scheduling": "on"},
    ],
    ids=str,
)
def test_the_bits_are_those_of_a_cold_computation(engines, folder, log, rng, tmp_path, knobs):
    requests = make_requests(engines, rng, count=5, shared_prefix=100)
    plain = {name: value for name, value in knobs.items() if name != "async_scheduling"}
    expected = logits_of(log, lambda: alone(engines, folder, requests, **plain))
    check_same_bits(
        log, lambda: write(engines, opened(engines, folder, tmp_path, **knobs), *requests), expected
    )
    again = opened(engines, folder, tmp_path, **knobs, max_num_batched_tokens=64)
    check_same_bits(log, lambda: engines.run(again, requests), expected)
    counts, stats = again.stats().kv_store, again.stats()
    assert counts.num_blocks_read and counts.num_files_refused == 0
    assert stats.prefix_cache_hits >= len(requests) * 5 * BLOCK


def test_random_arrivals_evictions_and_aborts(engines, llama, rng, tmp_path):
    few = {"num_kv_blocks": 24, "max_model_len": 24 * BLOCK, "kv_cache_memory_gib": None}
    requests = make_requests(engines, rng, count=12, shared_prefix=70)
    engine = engines.make(llama, enable_prefix_caching=False)
    expected = texts(engines.run(engine, requests))
    doomed = {request.request_id: rng.randrange(1, 9) for request in rng.sample(requests, 3)}
    for _ in range(2):
        engine = opened(engines, llama, tmp_path, **few)
        arrivals = [rng.randrange(20) for _ in requests]
        done = texts(engines.run(engine, requests, arrivals=arrivals, aborts=doomed))
        engine.shutdown()
        for key, whole in expected.items():
            assert done.get(key, []) == whole[: len(done.get(key, []))]
            assert key[0] in doomed or done[key] == whole
        assert engine.stats().kv_blocks_used == 0
    assert engine.stats().kv_store.num_blocks_read


def test_what_others_computed_or_salted_is_not_found(engines, llama, tiny_llama, tmp_path):
    prompt = prompt_of(6)
    ask = engines.request("a", prompt, cache_salt="mine")
    whole = write(engines, opened(engines, llama, tmp_path), ask)
    assert read(engines, opened(engines, llama, tmp_path), ask)[:2] == (whole, 6 * BLOCK)
    for salt in (None, "yours"):
        other = engines.request("a", prompt, cache_salt=salt)
        assert read(engines, opened(engines, llama, tmp_path), other)[:2] == (whole, 0)
    for facts in (
        {"digest": "other weights"},
        {"dtype": "bfloat16"},
        {"kv_cache_dtype": "int8"},
        {"quantization": "int8"},
        {"folder": tiny_llama(seed=11, rope_theta=5000.0)},
    ):
        engine = opened(engines, **({"folder": llama} | facts), path=tmp_path)
        assert read(engines, engine, ask)[1] == 0, facts


def test_blocks_that_come_back_are_announced_with_their_texts(engines, folder, tmp_path):
    ask = engines.request("a", prompt_of(random.randint(2, 6)), cache_salt="mine")
    whole = write(engines, opened(engines, folder, tmp_path), ask)
    told = opened(engines, folder, tmp_path, kv_events_config={"enable_kv_cache_events": True})
    assert read(engines, told, ask)[0] == whole and told.stats().kv_store.num_blocks_read
    (answer,), seen = whole.values(), set()
    text = [*ask.prompt_token_ids, *answer]
    chain = extend_chain([], chain_root("mine", None), text, BLOCK)
    for record in told.cache_journal.take():
        if isinstance(record, StoredBlocks) and record.hashes[0] in chain:
            first = chain.index(record.hashes[0])
            assert record.hashes == chain[first : first + len(record.hashes)]
            assert record.parent == (chain[first - 1] if first else None)
            end = first + len(record.hashes)
            assert record.token_ids == text[first * BLOCK : end * BLOCK]
            assert record.keys == [("mine",) if n == 0 else () for n in range(first, end)]
            seen.update(range(first, end))
    assert seen.issuperset(range(len(ask.prompt_token_ids) // BLOCK))


def test_damaged_files_cost_time_only(engines, llama, tmp_path):
    ask = engines.request("a", prompt_of(12))
    whole = write(engines, opened(engines, llama, tmp_path), ask)
    paths = sorted(tmp_path.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    for path in random.sample(paths, 4):
        data = bytearray(path.read_bytes())
        data[random.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)
    found, known, counts = read(engines, opened(engines, llama, tmp_path), ask)
    assert found == whole and known < 12 * BLOCK
    assert counts.num_files_refused == 1, "the first false file ends the search"
    engine = opened(engines, llama, tmp_path)
    assert read(engines, engine, ask)[0] == whole


def test_a_disk_that_hangs_delays_only_who_waits_for_it(engines, llama, tmp_path, monkeypatch):
    ask = engines.request("a", prompt_of(8))
    whole = write(engines, opened(engines, llama, tmp_path), ask)
    monkeypatch.setattr(restoring, "_PATIENCE_S", 0.4)
    engine, goes_on = opened(engines, llama, tmp_path), threading.Event()
    real_read = BlockFiles.read

    def hang(files, *arguments):
        goes_on.wait()
        return real_read(files, *arguments)

    monkeypatch.setattr(BlockFiles, "read", hang)
    other = engines.request("b", prompt_of(3), max_tokens=5)
    engine.add(ask)
    engine.add(other)
    done, ended = {}, []
    while engine.has_work():
        for event in engine.step()[0]:
            done.setdefault(event.request_id, []).extend(event.token_ids)
            if event.finish_reason is not None:
                ended.append(event.request_id)
    goes_on.set()
    assert ended == ["b", "a"] and done["a"] == whole["a", 0]


def test_a_disk_that_fails_costs_no_request(engines, llama, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(BlockFiles, "write", fail)
    engine = opened(engines, llama, tmp_path)
    engines.run(engine, [engines.request(str(n), prompt_of(4)) for n in range(3)])
    engine.shutdown()
    counts = engine.stats().kv_store
    assert counts.num_blocks_lost >= 12 and counts.num_blocks_written == 0
    assert not [*tmp_path.glob("*/*")]


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"enable_prefix_caching": False}, "enable_prefix_caching is off"),
        ({"kv_store_bytes": 1 << 20}, "give at least"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(engines, llama, tmp_path, knobs, reason):
    with pytest.raises(ModelLoadError, match=reason):
        opened(engines, llama, tmp_path, **knobs)


def test_recurrent_states_are_refused_by_name(engines, tiny_mamba, tmp_path):
    with pytest.raises(ModelLoadError, match="recurrent states"):
        opened(engines, tiny_mamba(), tmp_path)


def test_a_killed_process_loses_only_what_waits(engines, llama, tmp_path):
    """Blocks are written while texts go on, not at the end."""
    engine = opened(engines, llama, tmp_path)
    prompt, end_s = prompt_of(10), time.monotonic() + 60
    while engine.stats().kv_store.num_blocks_written < 10:
        assert time.monotonic() < end_s
        if not engine.has_work():
            engine.add(engines.request("a", prompt, max_tokens=120, ignore_eos=True))
        engine.step()
    assert len([*tmp_path.glob("*/*")]) >= 10
