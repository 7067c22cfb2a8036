"""Models come and go while a stream runs: it keeps its bits, and what has gone leaves nothing."""

import contextlib
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.helpers.served import Stream

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
LONG = {
    "model": MODEL,
    "prompt": "Once upon a time",
    "max_tokens": 300,
    "ignore_eos": True,
    "temperature": 0.9,
    "seed": 7,
    "logprobs": 2,
    "return_token_ids": True,
}
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama):
    """The models that may be loaded: `tiny`, and `broken`, whose weights are cut off."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_llama(), folder / "tiny")
    shutil.copytree(folder / "tiny", folder / "broken")
    [weights] = (folder / "broken").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    return folder


@pytest.fixture(scope="module")
def server(start_shared_server, folder):
    return start_shared_server(
        *("--model", MODEL, "--enable-runtime-loading", "--models-dir", str(folder)),
        *("--kv-cache-memory-gib", "0.25"),
    )


def post(server, path, timeout_s=120.0, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=timeout_s)


def status_of(server, model):
    cards = httpx.get(f"{server.url}/models", timeout=10).json()["data"]
    return next(card["status"] for card in cards if card["id"] == model)


def bits(stream):
    """Each token with its log-probability and those of the alternatives, to the last bit."""
    found = []
    for event in stream.events:
        for choice in [] if event == "[DONE]" else json.loads(event)["choices"]:
            logprobs = choice.get("logprobs") or {"token_logprobs": [], "top_logprobs": []}
            token_ids = choice.get("token_ids") or []
            columns = (token_ids, logprobs["token_logprobs"], logprobs["top_logprobs"])
            found += zip(*columns, strict=True)
    return found


def tree(server):
    """The server and all that it has started, and the memory of these in MiB."""
    root = psutil.Process(server.process.pid)
    sizes = {}
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            sizes[process.pid] = process.memory_info().rss
    return sizes.keys(), sum(sizes.values()) // MIB


def test_a_stream_keeps_its_bits_while_another_model_comes_and_goes(server):
    with Stream(server, **LONG) as alone:
        alone.join(120)
    assert len(bits(alone)) == LONG["max_tokens"]
    # A model has a worker, its template's process, and its structures' once it was idle.
    server.wait_until(lambda: len(tree(server)[0]) == 1 + 3)
    before, memory_before = tree(server)
    with Stream(server, **LONG | {"max_tokens": 8000}) as beside:  # for minutes
        beside.wait_for_events()
        num_before = len(beside.events)
        response = post(server, "/models/load", model="tiny")
        assert len(beside.events) > num_before + 5, "it went on meanwhile"
        assert response.status_code == 200, response.text
        assert response.json()["status"]["value"] == "loaded"
        server.wait_until(lambda: len(tree(server)[0]) == len(before) + 3)
        _, memory_with = tree(server)
        answer = post(server, "/v1/completions", model="tiny", prompt="a", max_tokens=4)
        assert answer.status_code == 200
        assert server.get("/ready")[0] == 200

        response = post(server, "/models/unload", model="tiny")
        assert response.status_code == 200, response.text
        server.wait_until(lambda: len(bits(beside)) >= len(bits(alone)))
    assert bits(beside)[: len(bits(alone))] == bits(alone)
    server.wait_until(lambda: tree(server)[0] == before)
    _, memory_after = tree(server)
    print(f"MiB before, with and after: {memory_before}, {memory_with}, {memory_after}")
    assert memory_with > memory_before + 100
    assert memory_after < memory_with - 200
    assert post(server, "/v1/completions", model="tiny", prompt="a").status_code == 404
    assert server.metric("tandem_model_ready", model_name="tiny") == 0
    assert 'model_name="tiny"' not in httpx.get(f"{server.url}/metrics", timeout=10).text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nowhere"}, 404, "model_not_found"),
        ({"model": "../tiny"}, 404, "model_not_found"),
        ({"model": "broken"}, 400, "corrupt_file"),
        (
            {"model": "tiny", "settings": {"kv_cache_memory_gib": 1_000_000}},
            503,
            "insufficient_memory",
        ),
        ({"model": "tiny", "settings": {"max_model_len": 100_000}}, 400, "invalid_value"),
        ({"model": MODEL}, 409, "model_conflict"),
    ],
)
def test_a_load_that_fails_leaves_nothing_behind(server, body, status, code):
    before, _ = tree(server)
    response = post(server, "/models/load", **body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    server.wait_until(lambda: tree(server)[0] == before)
    assert [m["model"] for m in server.get("/ready")[1]["models"]] == [MODEL]


def test_a_worker_that_is_killed_while_its_model_is_unloaded(server):
    before, _ = tree(server)
    workers = set(server.worker_pids())
    assert post(server, "/models/load", model="tiny", settings={"seed": 3}).status_code == 200
    [worker] = set(server.worker_pids()) - workers
    with ThreadPoolExecutor(1) as pool, server.workers_stopped():
        asked = {"model": "tiny", "prompt": "a"}
        answer = pool.submit(post, server, "/v1/completions", **asked)
        server.wait_until(lambda: server.num_in_flight() == 1)
        assert post(server, "/models/unload", model="tiny", wait=False).status_code == 202
        refused = post(server, "/v1/completions", **asked)
        os.kill(worker, signal.SIGKILL)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_unloading"
        assert answer.result().status_code == 503
    server.wait_until(lambda: status_of(server, "tiny")["value"] == "unloaded")
    server.wait_until(lambda: tree(server)[0] == before)


def test_the_log_tells_of_it_without_tracebacks(server):
    log = server.log()
    assert log.count("model unloaded") == 2
    assert log.count("model failed to load") == 3
    assert "Traceback" not in log
