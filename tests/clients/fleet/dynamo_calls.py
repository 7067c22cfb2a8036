# /// script
# dependencies = ["ai-dynamo-runtime", "httpx", "pytest"]
# ///
"""Dynamo: https://github.com/ai-dynamo/dynamo, its service that follows servers' KV events over
ZeroMQ and says which of them a prompt should go to."""

import json
import os
import random
import socket
import subprocess
import sys
import time

import httpx
import pytest

URLS = os.environ["SERVER_URLS"].split()
PORTS = json.loads(os.environ["EVENT_PORTS"])
MODEL = "smollm2-135m-instruct"
BLOCK = 16
SERVERS = range(len(URLS))
WAIT_S = 60


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def words(count):
    return " ".join("".join(random.choices("abcdefghij", k=4)) for _ in range(count))


def complete(url, prompt):
    """The number of tokens that were cached."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 2}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def tokens_of(prompt):
    body = {"model": MODEL, "prompt": prompt}
    [rendered] = httpx.post(f"{URLS[0]}/v1/completions/render", json=body).json()
    return rendered["token_ids"]


def wait_until(is_so):
    until_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.05)


class Selector:
    """A client of the service."""

    def __init__(self, url):
        self.url = url

    def is_up(self):
        try:
            return httpx.get(f"{self.url}/workers").is_success
        except httpx.TransportError:
            return False

    def post(self, path, **body):
        answer = httpx.post(f"{self.url}{path}", json={"model_name": MODEL, **body})
        assert answer.is_success, answer.text
        return answer.json()

    def add(self, number):
        events, replay = (f"tcp://127.0.0.1:{port}" for port in PORTS[number])
        where = {"endpoint": URLS[number], "kv_events_endpoint": events, "replay_endpoint": replay}
        added = self.post("/workers", worker_id=number, block_size=BLOCK, **where)
        assert added["lifecycle"] == "schedulable"

    def known(self, prompt):
        """The number of tokens of a prompt that each server has cached, as far as it knows."""
        workers = self.post("/overlap_scores", token_ids=tokens_of(prompt))["workers"]
        blocks = {worker["worker_id"]: worker["device_blocks"] for worker in workers}
        return [blocks[number] * BLOCK for number in SERVERS]

    def select(self, prompt):
        return self.post("/select", token_ids=tokens_of(prompt))


@pytest.fixture(scope="module")
def early():
    """A prompt for each server, computed before the service subscribes."""
    prompts = [words(60) for _ in SERVERS]
    for url, prompt in zip(URLS, prompts, strict=True):
        complete(url, prompt)
    return prompts


@pytest.fixture(scope="module")
def selector(early, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("dynamo") / "log"
    command = [sys.executable, "-m", "dynamo.select_service", "--port", str(port), "--threads", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    selector = Selector(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: selector.is_up() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        for number in SERVERS:
            selector.add(number)
        yield selector
    finally:
        process.terminate()
        process.wait()


def alone(number, tokens):
    """What is known when one server has cached that many tokens, and the others nothing."""
    return [tokens if one == number else 0 for one in SERVERS]


def full(prompt):
    return len(tokens_of(prompt)) // BLOCK * BLOCK


@pytest.mark.parametrize("number", SERVERS)
def test_it_replays_what_it_missed(selector, early, number):
    def has_asked():
        complete(URLS[number], words(20))  # the gap before its events is what makes it ask
        return selector.known(early[number]) == alone(number, full(early[number]))

    wait_until(has_asked)


def test_a_prompt_goes_where_most_of_it_is_cached(selector):
    for number in random.sample([*SERVERS, *SERVERS], 2 * len(SERVERS)):
        prompt = words(random.randint(30, 80))
        assert selector.known(prompt) == alone(number, 0)
        complete(URLS[number], prompt)
        expected = alone(number, full(prompt))
        wait_until(lambda prompt=prompt, expected=expected: selector.known(prompt) == expected)
        longer = f"{prompt} {words(6)}"
        selected = selector.select(longer)
        assert selected["endpoint"] == URLS[number]
        matched = selected["overlap"]["longest_matched"]
        assert complete(selected["endpoint"], longer) == matched >= full(prompt) - BLOCK


def test_it_follows_a_reset(selector):
    prompt = words(60)
    for number in SERVERS:
        complete(URLS[number], prompt)
    both = [full(prompt)] * len(URLS)
    wait_until(lambda: selector.known(prompt) == both)
    number = random.choice(SERVERS)
    httpx.post(f"{URLS[number]}/reset_prefix_cache").raise_for_status()
    rest = [0 if one == number else tokens for one, tokens in enumerate(both)]
    wait_until(lambda: selector.known(prompt) == rest)
    assert selector.select(prompt)["worker_id"] != number
