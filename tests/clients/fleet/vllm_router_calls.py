# /// script
# dependencies = ["httpx", "pytest", "vllm-router"]
# ///
"""vLLM's router: https://github.com/vllm-project/router, which has one server compute prompts and
another one continue them."""

import itertools
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

PREFILLER, DECODER = os.environ["SERVER_URLS"].split()
MODEL = "smollm2-135m-instruct"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
WAIT_S = 60


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def words(count):
    return " ".join("".join(random.choices("abcdefghij", k=4)) for _ in range(count))


def wait_until(is_so):
    until_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.1)


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("router") / "log"
    command = [sys.executable, "-m", "vllm_router.launch_router", "--vllm-pd-disaggregation"]
    command += ["--prefill", PREFILLER, "--decode", DECODER, "--policy", "round_robin"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_up(url) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait()


def is_up(url):
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def metric(url, name):
    samples = re.findall(rf"^tandem_{name}{{.*}} (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
    assert samples
    return sum(map(float, samples))


def drawn(path, count):
    """A request for a text that is drawn by a seed."""
    body = {"model": MODEL, "temperature": 1.0, "seed": random.getrandbits(31), "max_tokens": 12}
    if path == CHAT:
        return body | {"messages": [{"role": "user", "content": words(count)}]}
    return body | {"prompt": words(count), "min_tokens": 3}


def ask(url, path, body):
    """The text, and why it ended."""
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    return text, choice["finish_reason"]


def ask_streamed(url, path, body):
    """The same, of a stream."""
    text, reason = "", None
    with httpx.stream("POST", url + path, json=body | {"stream": True}, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    *events, end = lines
    assert end == "[DONE]"
    for choice in itertools.chain(*(json.loads(event)["choices"] for event in events)):
        text += choice["delta"].get("content") or "" if path == CHAT else choice["text"]
        reason = choice["finish_reason"] or reason
    return text, reason


def alone(path, body):
    """The answer of a server that has cached nothing for it."""
    return ask(DECODER, path, body | {"cache_salt": secrets.token_hex(8)})


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("send", [ask, ask_streamed])
def test_texts_are_those_of_one_server(router, path, send):
    body = drawn(path, random.randint(30, 100))
    expected = alone(path, body)
    fetched = metric(DECODER, "kv_transfer_fetched_blocks_total")
    assert send(router, path, body) == expected
    wait_until(lambda: metric(DECODER, "kv_transfer_fetched_blocks_total") > fetched)


def test_twenty_at_once(router):
    asked = [(path, drawn(path, random.randint(5, 80))) for path in (CHAT, COMPLETION) * 10]
    expected = [alone(*one) for one in asked]

    def send(one):
        return random.choice([ask, ask_streamed])(router, *one)

    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(send, asked)) == expected
    assert metric(DECODER, "kv_transfer_failed_fetches_total") == 0


def test_clients_that_leave_hold_nothing(router):
    for path in (CHAT, COMPLETION) * 5:
        body = drawn(path, random.randint(20, 60)) | {"max_tokens": 400, "ignore_eos": True}
        sent = body | {"stream": True}
        with httpx.stream("POST", router + path, json=sent, timeout=60) as answer:
            next(answer.iter_lines())
    held = ("num_requests_running", "num_requests_waiting", "kv_transfer_lent_blocks")
    for url in (PREFILLER, DECODER):
        wait_until(lambda url=url: not any(metric(url, name) for name in held))
