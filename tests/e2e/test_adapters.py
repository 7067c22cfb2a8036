"""Adapters of a served model, chosen by their names with the official client."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
import torch
import transformers
from peft_adapters import write_adapter

pytestmark = pytest.mark.e2e
PROMPT = "The quick brown fox jumps over"


@pytest.fixture
def base(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture
def expected(base, tmp_path):
    """What transformers and PEFT write, by name; the adapters are in folders of their names."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    def text(model):
        found = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)
        return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)

    texts = {"base": text(transformers.AutoModelForCausalLM.from_pretrained(base))}
    for seed, (name, rank) in enumerate((("poet", 4), ("judge", 9))):
        model = write_adapter(base, tmp_path / name, seed, r=rank)
        texts[name] = text(model)
    assert len(set(texts.values())) == len(texts)
    return texts


def test_adapters_are_chosen_by_model(start_server, base, expected, tmp_path):
    server = start_server(
        f"base={base}",
        *("--dtype", "float32", "--device", "cpu"),
        *(f"--lora={name}={tmp_path / name}" for name in ("poet", "judge", "nobody")),
    )
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        assert {name: card["parent"] for name, card in cards.items()} == {
            "base": None,
            "poet": "base",
            "judge": "base",
        }

        def complete(name):
            answer = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=16, temperature=0
            )
            assert answer.model == name
            return name, answer.choices[0].text

        names = [*expected] * 6
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
        for name, reason in (("nobody", "adapter_config.json"), ("unheard of", "poet")):
            with pytest.raises(openai.NotFoundError, match=reason) as caught:
                complete(name)
            assert str(tmp_path) not in str(caught.value)
    assert "adapter failed to load" in server.log()


LONG = {
    "prompt": PROMPT,
    "max_tokens": 220,
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


def test_adapters_come_and_go_beside_streams(start_server, base, expected, tmp_path):
    shutil.copytree(tmp_path / "judge", tmp_path / "broken")
    os.truncate(tmp_path / "broken" / "adapter_model.safetensors", 999)
    server = start_server(
        f"base={base}",
        *("--dtype", "float32", "--device", "cpu", "--enable-runtime-loading"),
        *(f"--lora=poet={tmp_path / 'poet'}", "--loras-dir", str(tmp_path)),
    )

    def complete(name):
        body = {"model": name, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        return post(server, "/v1/completions", **body)

    def text(name):
        return complete(name).json()["choices"][0]["text"]

    names = ("base", "poet", "base", "poet")
    alone = {name: streamed(server, name, []) for name in names}
    times = [[] for _ in names]
    with ThreadPoolExecutor(len(names)) as pool:
        beside = [
            pool.submit(streamed, server, name, at) for name, at in zip(names, times, strict=True)
        ]
        while not all(len(at) > 5 for at in times):
            time.sleep(0.005)
        num_loads = 0
        while not any(stream.done() for stream in beside):
            answer = post(server, "/v1/load_lora_adapter", lora_name="judge")
            assert answer.status_code == 200, answer.text
            assert answer.json()["ranks"] == [9]
            assert text("judge") == expected["judge"]
            refused = post(server, "/v1/load_lora_adapter", lora_name="broken")
            assert refused.status_code == 400, refused.text
            assert str(tmp_path) not in refused.text
            assert post(server, "/v1/unload_lora_adapter", lora_name="judge").status_code == 200
            assert complete("judge").status_code == 404
            num_loads += 1
        assert num_loads > 0
        for name, stream in zip(names, beside, strict=True):
            assert stream.result() == alone[name]
    assert text("base") == expected["base"]

    assert post(server, "/v1/load_lora_adapter", lora_name="judge").status_code == 200
    children = psutil.Process(server.process.pid).children()
    [worker] = [child for child in children if "engine.loop" in " ".join(child.cmdline())]
    worker.kill()
    deadline_s = time.monotonic() + 60
    while complete("judge").status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert {name: text(name) for name in expected} == expected
