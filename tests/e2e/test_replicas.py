"""One model in two worker processes, beside the same model in one."""

import json
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(start_shared_server, tiny_llama):
    folder = str(tiny_llama(max_position_embeddings=4096))
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


def stream(server, prompt, lines):
    body = {
        "model": "two",
        "prompt": prompt,
        "max_tokens": 3000,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines.extend(line for line in response.iter_lines() if line.startswith("data:"))


def test_it_is_one_model_with_one_models_numbers(server):
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
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
    lines = [[], []]
    readers = [threading.Thread(target=stream, args=(server, prompt_of(5), own)) for own in lines]
    pids = {*server.worker_pids()}
    victim = server.worker_pids()[-1]  # the last one that was started: a second replica is
    for reader in readers:
        reader.start()
    server.wait_until(lambda: all(lines))
    assert requests_of(server) == [1, 1]
    os.kill(victim, signal.SIGKILL)
    server.wait_until(lambda: server.metric("tandem_replica_ready", model_name="two") == 1)
    assert complete(server, "two", "Count:", temperature=0)[:2] == before
    assert server.get("/health")[0] == 200 and server.get("/ready/two")[0] == 200
    for reader in readers:
        reader.join(60)
    ends = sorted(own[-1] == "data: [DONE]" and "error" not in own[-2] for own in lines)
    assert ends == [False, True], lines
    [lost] = [own for own in lines if any("error" in line for line in own[-2:])]
    error = next(line for line in reversed(lost) if "error" in line)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_dead"
    server.wait_until(lambda: server.metric("tandem_replica_ready", model_name="two") == 2)
    assert server.get("/ready/two")[1]["restarts"] == 1
    assert len({*server.worker_pids()} - pids) == 1
    assert requests_of(server) == [0, 0]
    with ThreadPoolExecutor(4) as pool:
        again = list(
            pool.map(lambda _: complete(server, "two", "Count:", temperature=0)[:2], range(4))
        )
    assert again == [before] * 4


def test_more_than_fit_are_refused_with_the_number_that_fits(start_server, tiny_llama):
    options = ("--replicas", "3", "--memory-gib", "1.1", "--kv-cache-memory-gib", "0.05")
    server = start_server("--model", f"m={tiny_llama()}", *options, wait=False)
    assert server.process.wait(60) == 1
    log = server.log()
    assert "of 3 replicas could be loaded" in log and "set replicas to 2" in log
