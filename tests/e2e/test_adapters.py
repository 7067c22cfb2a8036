"""Adapters of a served model, chosen by their names with the official client."""

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest
import torch
import transformers

from tests.helpers.adapters.peft_adapters import write_adapter

pytestmark = pytest.mark.e2e
PROMPT = "The quick brown fox jumps over"
RANKS = {"poet": 4, "judge": 9, "clerk": 2, "sage": 16, "fool": 7, "bard": 3}
"""The rank of each adapter, by name."""


@pytest.fixture(scope="module")
def base(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder per adapter, named like it."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def expected(base, folder):
    """What transformers and PEFT write, by name."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    def text(model):
        found = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)
        return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)

    texts = {"base": text(transformers.AutoModelForCausalLM.from_pretrained(base))}
    for seed, (name, rank) in enumerate(RANKS.items()):
        texts[name] = text(write_adapter(base, folder / name, seed, r=rank))
    assert len(set(texts.values())) == len(texts)
    return texts


@pytest.fixture(scope="module")
def server(start_shared_server, base, expected, folder):
    """It has places for two adapters at a time."""
    names = (*RANKS, "nobody")
    return start_shared_server(
        f"base={base}",
        *("--dtype", "float32", "--device", "cpu"),
        *(f"--lora={name}={folder / name}" for name in names),
        *("--max-loras", "2", "--max-cpu-loras", str(len(names))),
        *("--enable-runtime-loading", "--loras-dir", str(folder)),
    )


def test_adapters_are_chosen_by_model(server, expected, folder):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        parents = {name: card["parent"] for name, card in cards.items()}
        assert parents == {"base": None} | dict.fromkeys(RANKS, "base")

        def complete(name):
            answer = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=16, temperature=0
            )
            assert answer.model == name
            return name, answer.choices[0].text

        names = [*expected] * 4
        with ThreadPoolExecutor(len(names)) as pool:
            found = list(pool.map(complete, names))
        assert found == [(name, expected[name]) for name in names]

        def chat(name):
            stream = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=8,
                temperature=0,
                stream=True,
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert len({chat(name) for name in expected}) == len(expected)
        for name, reason in (("nobody", "no folder"), ("unheard of", "poet")):
            with pytest.raises(openai.NotFoundError, match=reason) as caught:
                complete(name)
            assert str(folder) not in str(caught.value)
    assert "adapter failed to load" in server.log()


LONG = {
    "prompt": PROMPT,
    "max_tokens": 120,
    "ignore_eos": True,
    "temperature": 0.9,
    "seed": 7,
    "logprobs": 2,
    "return_token_ids": True,
}


def post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def streamed(server, model, times):
    """Tokens and scores of a long stream."""
    found = []
    body = LONG | {"model": model, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    scores = choice["logprobs"] or {}
                    found.append((choice.get("token_ids"), scores.get("token_logprobs")))
    return found


def test_adapters_take_turns_and_leave_while_they_stream(server, expected):
    """Three times as many as have places are asked for at once, and each is taken away amid its own
    streams: these are what they were alone, and nothing is left of it."""
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0}

    def complete(name):
        return post(server, "/v1/completions", **body, model=name)

    def change(what, name):
        return post(server, f"/v1/{what}_lora_adapter", lora_name=name)

    alone = {name: streamed(server, name, []) for name in RANKS}

    num_requests = partial(server.metric, "tandem_lora_requests_total")

    def come_and_go(name):
        times = [[], []]
        with ThreadPoolExecutor(len(times)) as pool:
            streams = [pool.submit(streamed, server, name, at) for at in times]
            server.wait_until(lambda: all(times))
            assert change("unload", name).status_code == 200
            assert all(stream.result() == alone[name] for stream in streams)
        assert complete(name).status_code == 404
        answer = change("load", name)
        assert (answer.status_code, answer.json()["ranks"]) == (200, [RANKS[name]])
        return name, complete(name).json()["choices"][0]["text"]

    with ThreadPoolExecutor(len(RANKS)) as pool:
        assert all(text == expected[name] for name, text in pool.map(come_and_go, RANKS))
    server.wait_idle()
    for name in RANKS:
        # Of this load's: those of the one before have gone with it.
        server.wait_until(lambda: num_requests(lora_name=name) == 1)  # noqa: B023
        assert change("unload", name).status_code == 200
    server.wait_until(lambda: num_requests() == 0)
    # There is room for all of them again.
    for name in RANKS:
        assert change("load", name).status_code == 200
    assert {name: complete(name).json()["choices"][0]["text"] for name in expected} == expected
    server.wait_idle()


def test_adapters_come_and_go_beside_streams(server, expected, folder):
    shutil.copytree(folder / "judge", folder / "broken")
    os.truncate(folder / "broken" / "adapter_model.safetensors", 999)
    assert post(server, "/v1/unload_lora_adapter", lora_name="judge").status_code == 200

    def complete(name):
        body = {"model": name, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        return post(server, "/v1/completions", **body)

    def text(name):
        return complete(name).json()["choices"][0]["text"]

    names = ("base", "poet", "base", "poet")
    alone = {name: streamed(server, name, []) for name in set(names)}
    times = [[] for _ in names]
    is_over = threading.Event()

    def stream_on(name, at):
        """One stream after the other, as long as adapters come and go."""
        while not is_over.is_set():
            assert streamed(server, name, at) == alone[name]

    with ThreadPoolExecutor(len(names)) as pool:
        beside = [pool.submit(stream_on, name, at) for name, at in zip(names, times, strict=True)]
        try:
            server.wait_until(lambda: all(len(at) > 5 for at in times))
            for _ in range(2):
                answer = post(server, "/v1/load_lora_adapter", lora_name="judge")
                assert answer.status_code == 200, answer.text
                assert answer.json()["ranks"] == [9]
                assert text("judge") == expected["judge"]
                refused = post(server, "/v1/load_lora_adapter", lora_name="broken")
                assert refused.status_code == 400, refused.text
                assert str(folder) not in refused.text
                assert post(server, "/v1/unload_lora_adapter", lora_name="judge").status_code == 200
                assert complete("judge").status_code == 404
        finally:
            is_over.set()
        for stream in beside:
            stream.result()
    assert text("base") == expected["base"]

    assert post(server, "/v1/load_lora_adapter", lora_name="judge").status_code == 200
    [worker] = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    server.wait_until(lambda: complete("judge").status_code == 200)
    for name in ("base", "poet", "judge"):
        assert text(name) == expected[name]
