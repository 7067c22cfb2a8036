"""One model in two worker processes, beside the same model in one."""

import json
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.served import Stream

pytestmark = pytest.mark.e2e
MAX_MODEL_LEN = 1 << 18
"""A text of this length takes minutes, so that no stream ends before its test does."""


@pytest.fixture(scope="module")
def server(start_shared_server, tiny_llama):
    folder = str(tiny_llama(max_position_embeddings=MAX_MODEL_LEN))
    both = {"name": "two", "ref": folder, "settings": {"replicas": 2}}
    models = ("--model", f"one={folder}", "--model", json.dumps(both))
    return start_shared_server(*models, "--dtype", "float32", "--num-threads", "1")


def prompt_of(num_words):
    return " ".join("".join(random.choices("abcdefgh", k=4)) for _ in range(num_words))


def complete(server, model, prompt, **more):
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "logprobs": 1, "ignore_eos": True}
    response = httpx.post(f"{server.url}/v1/completions", json=body | more, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    choice = answer["choices"][0]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return choice["text"], choice["logprobs"]["token_logprobs"], cached


def requests_of(server):
    """How many unfinished requests each worker has."""
    return [server.metric("tandem_replica_num_requests", replica=name) for name in ("two", "two#2")]


def stream(server):
    text = {"prompt": prompt_of(5), "max_tokens": MAX_MODEL_LEN - 100, "ignore_eos": True}
    return Stream(server, model="two", **text)


def test_it_is_one_model_with_one_models_numbers(server):
    listed = httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert [one["id"] for one in listed] == ["one", "two"]
    assert server.get("/ready/two")[1]["phase"] == "ready"
    assert server.get("/health")[0] == 200
    assert len(server.worker_pids()) == 3
    assert server.metric("tandem_replica_ready", model_name="two") == 2
    assert server.metric("tandem_replica_ready", model_name="one") == 0


def test_the_same_seed_gives_the_same_bits_wherever_it_runs(server):
    """Alone on one worker, and in company on both of two."""
    prompts = [prompt_of(random.randint(2, 12)) for _ in range(6)]
    drawn = {"seed": random.getrandbits(31), "temperature": 1.0}
    expected = [complete(server, "one", prompt, **drawn)[:2] for prompt in prompts]
    before = server.metric("tandem_generation_tokens_total", model_name="two")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda prompt: complete(server, "two", prompt, **drawn)[:2], prompts))
    assert found == expected
    made = server.metric("tandem_generation_tokens_total", model_name="two") - before
    assert made == 6 * 12


def test_texts_that_begin_alike_meet_in_one_cache_and_others_are_shared_out(server):
    hits = server.metric("tandem_prefix_cache_hits_total", model_name="two")
    beginnings = [prompt_of(20) for _ in range(4)]
    lengths = [complete(server, "two", text)[2] for text in beginnings]
    assert lengths == [0, 0, 0, 0]
    for _ in range(3):
        for text in random.sample(beginnings, 4):
            assert complete(server, "two", text + prompt_of(2))[2] >= 32
    assert server.metric("tandem_prefix_cache_hits_total", model_name="two") - hits >= 12 * 32


def test_a_killed_worker_takes_its_own_requests_along_and_comes_back(server):
    before = complete(server, "two", "Count:", temperature=0)[:2]
    pids = server.worker_pids()
    with stream(server) as first, stream(server) as second:
        for one in (first, second):
            one.wait_for_events()
        assert requests_of(server) == [1, 1]
        os.kill(pids[-1], signal.SIGKILL)  # the last one that was started: a second replica is
        server.wait_until(lambda: not (first.is_alive() and second.is_alive()))
        assert complete(server, "two", "Count:", temperature=0)[:2] == before
        assert server.get("/health")[0] == 200 and server.get("/ready/two")[0] == 200
        lost, kept = (first, second) if second.is_alive() else (second, first)
        assert lost.error()["code"] == "engine_dead"
        kept.wait_for_events(len(kept.events) + 10)
        assert not any("error" in event for event in kept.events)
    server.wait_until(lambda: server.get("/ready/two")[1]["restarts"] == 1)
    server.wait_until(lambda: server.metric("tandem_replica_ready", model_name="two") == 2)
    assert len({*server.worker_pids()} - {*pids}) == 1
    server.wait_until(lambda: requests_of(server) == [0, 0])
    with ThreadPoolExecutor(4) as pool:
        again = list(
            pool.map(lambda _: complete(server, "two", "Count:", temperature=0)[:2], range(4))
        )
    assert again == [before] * 4


def test_more_than_fit_are_refused_with_the_number_that_fits(start_server, tiny_llama):
    options = ("--replicas", "3", "--memory-gib", "0.9", "--kv-cache-memory-gib", "0.05")
    server = start_server("--model", f"m={tiny_llama()}", *options, wait=False)
    assert server.process.wait(120) == 1
    log = server.log()
    assert "of 3 replicas could be loaded" in log and "set replicas to 2" in log
