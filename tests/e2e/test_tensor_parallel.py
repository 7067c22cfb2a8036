"""A model that two processes compute together, beside the same model in one."""

import json
import os
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.served import Stream

pytestmark = pytest.mark.e2e
MAX_MODEL_LEN = 1 << 17
"""A text of this length takes minutes."""


@pytest.fixture(scope="module")
def server(start_shared_server, tiny_llama):
    folder = str(tiny_llama(max_position_embeddings=MAX_MODEL_LEN))
    ranked = {"name": "two", "ref": folder, "settings": {"tensor_parallel_size": 2}}
    models = ("--model", f"one={folder}", "--model", json.dumps(ranked))
    return start_shared_server(*models, "--dtype", "float32", "--num-threads", "2")


def ranks_of(server):
    """The processes of ranks that draw no tokens."""
    pids = [
        subprocess.run(["pgrep", "-P", str(pid), "-f", "rank_child"], capture_output=True).stdout
        for pid in server.worker_pids()
    ]
    return [int(pid) for found in pids for pid in found.split()]


def complete(server, model, prompt, **more):
    body = {"model": model, "prompt": prompt, "max_tokens": 20, "temperature": 0, "logprobs": 1}
    response = httpx.post(f"{server.url}/v1/completions", json=body | more, timeout=60)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def test_two_processes_write_what_one_writes(server):
    """In company and alone with the same bits, and prompts are scored as well."""
    prompts = ["".join(random.choices("abcdefgh ", k=random.randint(5, 60))) for _ in range(5)]
    alone = [complete(server, "two", prompt) for prompt in prompts]
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda prompt: complete(server, "two", prompt), prompts))
    assert together == alone
    for prompt, (text, logprobs) in zip(prompts, alone, strict=True):
        expected = complete(server, "one", prompt)
        assert text == expected[0]
        assert logprobs == pytest.approx(expected[1], abs=1e-4)
    scored = [
        complete(server, m, prompts[0], echo=True, max_tokens=1)[1][1:] for m in ("one", "two")
    ]
    assert scored[0] == pytest.approx(scored[1], abs=1e-4)


@pytest.mark.parametrize(
    "how", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_lost_rank_ends_its_streams_with_an_error_and_all_ranks_come_back(server, how):
    before = complete(server, "two", "Count:")
    [rank] = ranks_of(server)
    text = {"prompt": "Count:", "max_tokens": MAX_MODEL_LEN - 100, "ignore_eos": True}
    with Stream(server, model="two", **text) as stream:
        stream.wait_for_events()
        os.kill(rank, how)
        assert stream.error()["code"] == "engine_dead"
    server.wait_for("/ready")
    assert ranks_of(server) not in ([], [rank])
    assert complete(server, "two", "Count:") == before


def test_what_ranks_cannot_do_is_refused(server):
    body = {"model": "two", "input": "a text"}
    assert httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60).status_code == 400
