"""A GPTQ checkpoint served by the installed command, beside its unpacked twin and a damaged one."""

import json
import shutil

import httpx
import pytest
from gptq_checkpoints import Layout, write_gptq
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.e2e

PROMPTS = ("Once upon a time", "The", "a b c d e f g h", "What is it? " * 9)


def text(server, model, prompt):
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, "seed": 1}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_greedy_texts_are_those_of_the_twin(start_server, tiny_llama, tmp_path):
    vocab_size = json.loads((tiny_llama() / "config.json").read_text())["vocab_size"]
    # A whole number of packed zero points.
    original = tiny_llama(seed=5, vocab_size=-(-vocab_size // 8) * 8)
    packed, twin = write_gptq(original, tmp_path, Layout(desc_act=True, lm_head=True))
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    models = {"packed": packed, "twin": twin, "damaged": damaged}
    server = start_server(
        "--dtype",
        "float32",
        *(word for name, path in models.items() for word in ("--model", f"{name}={path}")),
    )
    found = [text(server, "packed", prompt) for prompt in PROMPTS]
    assert found == [text(server, "twin", prompt) for prompt in PROMPTS]
    assert len(set(found)) > 1
    status, body = server.get("/ready")
    assert (status, body["failed"]) == (200, ["damaged"])
    detail = body["models"][2]["detail"]
    assert "model.layers.0.mlp.up_proj.scales has values that are not numbers" in detail
    assert len(server.worker_pids()) == 2
