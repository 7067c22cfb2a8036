"""A GPTQ checkpoint served by the installed command, beside its unpacked twin, one that is damaged
and one that is too far from its original."""

import json
import shutil

import httpx
import pytest
from safetensors.torch import load_file, save_file

from engine.weights.quality_record import save_quality
from engine.weights.source import Checkpoint
from tests.helpers.quantization.gptq_checkpoints import Layout, write_gptq
from tests.helpers.quantization.measured_quality import measured

pytestmark = pytest.mark.e2e

PROMPTS = ("Once upon a time", "The", "a b c d e f g h", "What is it? " * 9)


def text(server, model, prompt):
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, "seed": 1}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def note_divergence(folder, kl):
    """However the machine prefers to keep it."""
    for quantization in ("gptq", "none"):
        one = measured(kl, quantization=quantization)
        save_quality(Checkpoint("folder", folder, "m"), one)


def test_served_texts_and_warnings(start_server, tiny_llama, tmp_path):
    vocab_size = json.loads((tiny_llama() / "config.json").read_text())["vocab_size"]
    # A whole number of packed zero points.
    original = tiny_llama(seed=5, vocab_size=-(-vocab_size // 32) * 32)
    packed, twin = write_gptq(original, tmp_path, Layout(bits=3, desc_act=True, lm_head=True))
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    far = shutil.copytree(packed, tmp_path / "far")
    note_divergence(packed, 0.15)
    note_divergence(far, 0.25)
    models = {"packed": packed, "twin": twin, "damaged": damaged, "far": far}
    server = start_server(
        *("--dtype", "float32", "--max-kl", "0.2"),
        *(word for name, path in models.items() for word in ("--model", f"{name}={path}")),
    )
    found = [text(server, "packed", prompt) for prompt in PROMPTS]
    assert found == [text(server, "twin", prompt) for prompt in PROMPTS]
    assert len(set(found)) > 1
    status, body = server.get("/ready")
    assert (status, body["failed"]) == (200, ["damaged", "far"]), server.log()
    details = {one["model"]: one["detail"] for one in body["models"]}
    reason = "model.layers.0.mlp.up_proj.scales has values that are not numbers"
    assert reason in details["damaged"]
    assert "measured KL divergence from original is 0.2500 nats" in details["far"]
    assert "max_kl is 0.2" in details["far"]
    assert len(server.worker_pids()) == 2

    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    warned = {
        (line["model"], line["message"].split(",")[0]): line for line in lines if is_warning(line)
    }
    assert warned["packed", "the weights have fewer than 4 bits each"]["bits"] == 3.0
    of_quality = warned["packed", "the model's probabilities are far from its original's"]
    assert (of_quality["kl_divergence"], of_quality["top1_agreement"]) == (0.15, 0.75)
    assert any(model == "twin" and "nobody has measured" in event for model, event in warned)
    assert server.metric("tandem_model_quality_kl", model_name="packed") == 0.15
    assert server.metric("tandem_model_quality_kl") == 0.15, "of no other"


def is_warning(line):
    return line.get("level") == "warning" and "model" in line
