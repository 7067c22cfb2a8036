"""Four models of which about two fit into memory, asked all at once: every answer has the bits that
it has where all four fit."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.models.tiny_encoders import make_encoder

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GIB = 1 << 30
TEXTS = ["The quick brown fox jumps over the lazy dog and then " * 3 + end for end in "abcd"]
NAMES = ("base", "other", "encoder", "tandem-shapes")


@pytest.fixture(scope="module")
def options(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base, _ = tiny_llama(seed=11), make_encoder(folder / "encoder")
    write_adapter(base, folder / "poet", 3, r=4)
    models = (f"base={base}", f"other={tiny_llama()}", f"encoder={folder / 'encoder'}", NAMES[-1])
    return (
        *(option for model in models for option in ("--model", model)),
        *(f"--lora=poet={folder / 'poet'}", "--kv-cache-memory-gib", "0.05"),
        *("--dtype", "float32", "--device", "cpu", "--enable-runtime-loading"),
    )


def orders():
    """The requests, by name: paths and bodies."""
    found = {}
    for number, text in enumerate(TEXTS):
        for model in ("base", "poet", "other"):
            body = {"model": model, "prompt": text, "max_tokens": 12, "seed": 5, "logprobs": 2}
            found[model, number] = "/v1/completions", body | {"temperature": 0.8}
        found["encoder", number] = "/v1/embeddings", {"model": "encoder", "input": text}
    for seed in (1, 2):
        body = {"model": "tandem-shapes", "prompt": "a red circle", "seed": seed, "steps": 3}
        found["picture", seed] = "/v1/images/generations", body
    return found


def ask(server, order):
    path, body = order
    response = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def bits(answer):
    """What must be equal: everything except ids and times."""
    if "choices" in answer:
        return [(choice["text"], choice["logprobs"]) for choice in answer["choices"]]
    return [one.get("embedding") or one["b64_json"] for one in answer["data"]]


def test_answers_have_the_same_bits_whoever_slept(start_server, options):
    twins = start_server(*options)
    expected = {name: bits(ask(twins, order)) for name, order in orders().items()}
    held = [twins.metric("tandem_memory_held_bytes", model_name=name) for name in NAMES]
    twins.stop()
    budget = (max(held) + min(held)) * 1.02
    assert budget < 0.9 * sum(held), held
    server = start_server(*options, "--memory-gib", f"{budget / GIB:.6f}")
    statuses = httpx.get(f"{server.url}/models").json()["data"]
    assert "sleeping" in {card["status"]["value"] for card in statuses}

    end_s, rng, served, is_over = time.monotonic() + 90, random.Random(), [], threading.Event()

    def user(seed):
        rng = random.Random(seed)
        while not is_over.is_set():
            name, order = rng.choice([*orders().items()])
            assert bits(ask(server, order)) == expected[name], name
            served.append(name[0])

    def watch():
        most = 0.0
        while server.metric("tandem_model_wakes_total") < 4 and time.monotonic() < end_s:
            most = max(most, server.metric("tandem_memory_held_bytes"))
            time.sleep(0.05)
        is_over.set()
        return most

    with ThreadPoolExecutor(6) as pool:
        watching = pool.submit(watch)
        for asking in [pool.submit(user, rng.random()) for _ in range(5)]:
            asking.result()
        assert watching.result() <= budget
    wakes = [server.metric("tandem_model_wakes_total", model_name=name) for name in NAMES]
    print(f"{len(served)} answers, {wakes} wakes, {budget / GIB:.3f} of {sum(held) / GIB:.3f} GiB")
    assert sum(wakes) >= 2
    for name in (("base", 0), ("poet", 0), ("other", 0), ("encoder", 0), ("picture", 1)):
        assert bits(ask(server, orders()[name])) == expected[name], name
    assert "Traceback" not in server.log()
