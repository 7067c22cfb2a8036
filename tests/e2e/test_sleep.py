"""Models that do not fit into memory together: one that has woken gives the bits that it gave when
it was first loaded, and their processes never take more than the budget."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from loadtest.processes import MemoryWatch
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.models.tiny_encoders import make_encoder

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
BUDGET_GIB = 1.5
"""Enough for two or three of the models, of which each takes 0.4 GiB at least."""
TEXTS = ["The quick brown fox jumps over the lazy dog and then " * 3 + end for end in "ab"]
NAMES = ("base", "other", "encoder", "tandem-shapes")


@pytest.fixture
def server(start_server, tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base, _ = tiny_llama(seed=11), make_encoder(folder / "encoder")
    write_adapter(base, folder / "poet", 3, r=4)
    models = (f"base={base}", f"other={tiny_llama()}", f"encoder={folder / 'encoder'}", NAMES[-1])
    return start_server(
        *(option for model in models for option in ("--model", model)),
        *(f"--lora=poet={folder / 'poet'}", "--kv-cache-memory-gib", "0.05"),
        *("--dtype", "float32", "--device", "cpu", "--enable-runtime-loading"),
        *("--memory-gib", str(BUDGET_GIB)),
    )


async def test_processes_that_start_together_stay_within_the_budget(start_server, tiny_llama):
    """Six workers start at once, and each takes 200 MiB before it knows its model."""
    path, most_mib = tiny_llama(), 650
    models = [option for n in range(6) for option in ("--model", f"m{n}={path}")]
    beside = ("--kv-cache-memory-gib", "0.01", "--dtype", "float32", "--device", "cpu")
    server = start_server(*models, *beside, "--memory-gib", str(most_mib / 1024), wait=False)
    watch = MemoryWatch((server.process.pid,))
    async with watch.watching(0.05, 0.5):
        await asyncio.to_thread(server.wait_for, "/ready")
    statuses = httpx.get(f"{server.url}/models", timeout=60).json()["data"]  # noqa: ASYNC210
    assert [card["status"]["value"] for card in statuses].count("sleeping") == 5
    assert 0 < watch.peak_below_bytes <= most_mib << 20, watch.peak_below_bytes >> 20


def orders():
    """The requests, by name: paths and bodies."""
    found = {}
    for number, text in enumerate(TEXTS):
        for model in ("base", "poet", "other"):
            body = {"model": model, "prompt": text, "max_tokens": 12, "seed": 5, "logprobs": 2}
            found[model, number] = "/v1/completions", body | {"temperature": 0.8}
        found["encoder", number] = "/v1/embeddings", {"model": "encoder", "input": text}
    body = {"model": "tandem-shapes", "prompt": "a red circle", "seed": 5, "steps": 3}
    found["picture", 0] = "/v1/images/generations", body
    return found


def ask(server, order):
    path, body = order
    response = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    assert server.metric("tandem_memory_held_bytes") <= BUDGET_GIB * (1 << 30)
    return response.json()


def bits(answer):
    """What must be equal: everything except ids and times."""
    if "choices" in answer:
        return [(choice["text"], choice["logprobs"]) for choice in answer["choices"]]
    return [one.get("embedding") or one["b64_json"] for one in answer["data"]]


def num_wakes(server):
    return sum(server.metric("tandem_model_wakes_total", model_name=name) for name in NAMES)


def test_answers_have_the_same_bits_whoever_slept(server):
    statuses = httpx.get(f"{server.url}/models", timeout=60).json()["data"]
    assert "sleeping" in {card["status"]["value"] for card in statuses}
    some = sorted(orders().items())
    expected = {name: bits(ask(server, order)) for name, order in some}

    def user(orders):
        for name, order in orders:
            assert bits(ask(server, order)) == expected[name], name

    before = num_wakes(server)
    random.shuffle(some)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(user, [some[first::4] for first in range(4)]))
    assert num_wakes(server) > before, "all models were asked, and one slept at least"
    httpx.post(f"{server.url}/sleep", params={"level": 2}, timeout=60).raise_for_status()
    assert server.metric("tandem_memory_held_bytes") == 0
    for name in (("poet", 0), ("encoder", 1)):
        assert bits(ask(server, orders()[name])) == expected[name], name
    assert "Traceback" not in server.log()
