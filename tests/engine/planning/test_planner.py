"""Orders for plans, and what an engine says that finds too little memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import InsufficientMemory, InvalidParameter, UnsupportedFeature
from engine.host import Grant
from engine.llm import loading
from engine.planning.planner import Order, make_plan
from engine.weights.source import Checkpoint

SHAPES = Path(loading.__file__).parents[1] / "data" / "shapes"


class Host:
    """Has memory for weights only."""

    def report(self, phase, progress=None, detail=None):
        pass

    def reserve(self, device, purpose, num_bytes, capacity_bytes):
        if purpose != "weights":
            raise InsufficientMemory(f"no memory for {purpose}")
        return capacity_bytes - num_bytes

    def borrow(self, device, purpose, num_bytes, capacity_bytes):
        return Grant(0, capacity_bytes)

    def give_back(self, grant):
        pass


def order(model, tmp_path, **changes):
    values = {
        "model": str(model),
        "config": EngineConfig(device="cpu", num_threads=1),
        "gpu": None,
        "concurrency": 1,
        "context": None,
        "cache_dir": tmp_path,
        "offline": True,
    }
    return Order(**(values | changes))


def made(*arguments, **changes):
    return make_plan(order(*arguments, **changes), lambda message: None)


def test_a_plan_is_json_and_has_measured_speeds_here(tiny_llama, tmp_path):
    plan = made(tiny_llama(), tmp_path, context=100)
    assert json.loads(json.dumps(plan)) == plan
    assert (plan["kind"], plan["context"], plan["concurrency"]) == ("text", 100, 1)
    for row in plan["rows"]:
        assert row["decode_tokens_per_s"] > 0 and row["prefill_tokens_per_s"] > 0
        assert row["total_bytes"] == sum(
            row[f"{part}_bytes"] for part in ("process", "weight", "kv", "step")
        )
    assert {row["kv_cache_dtype"] for row in plan["rows"]} == {"bfloat16", "int8"}


def test_a_plan_for_a_gpu_needs_none(tiny_llama, tmp_path):
    plan = made(tiny_llama(), tmp_path, gpu="l4")
    assert plan["device"] == "NVIDIA L4"
    assert 21 << 30 < plan["free_bytes"] < 23 << 30
    with pytest.raises(InvalidParameter, match="4090"):
        made(tiny_llama(), tmp_path, gpu="voodoo")


def test_image_models_have_weights_and_steps(tmp_path):
    plan = made(SHAPES, tmp_path, gpu="4090")
    assert plan["kind"] == "image"
    plain = plan["rows"][0]
    assert plain["quantization"] == "none" and plain["max_tokens"] is None
    files = sum(path.stat().st_size for path in SHAPES.rglob("*.safetensors"))
    assert files / 4 < plain["weight_bytes"] <= files
    twice = made(SHAPES, tmp_path, gpu="4090", concurrency=2)["rows"][0]
    assert twice["step_bytes"] == 2 * plain["step_bytes"]


def test_models_that_embed_are_not_planned(tiny_llama, tmp_path):
    wanted = EngineConfig(device="cpu", kind="embedding")
    with pytest.raises(UnsupportedFeature, match="makes embeddings; models that make text and"):
        made(tiny_llama(), tmp_path, config=wanted)


def test_a_model_that_does_not_fit_is_told_what_would(tiny_llama):
    checkpoint = Checkpoint("folder", tiny_llama(), "t")
    config = EngineConfig(device="cpu", num_threads=1)
    with pytest.raises(InsufficientMemory, match="no memory for KV cache") as caught:
        loading.load_engine(checkpoint, "t", config, Host())
    assert "t on this machine" in caught.value.hint
    assert "1 text of 512 tokens at a time" in caught.value.hint
    assert "Fits with" in caught.value.hint
    small = replace(config, max_model_len=512, num_kv_blocks=2)
    with pytest.raises(InsufficientMemory, match="lower max_model_len to 32") as caught:
        loading.load_engine(checkpoint, "t", small, Host())
    assert "--kv-cache-dtype int8" in caught.value.hint
