"""Orders for plans, and what an engine says that finds too little memory."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.contract.orders import PlanningOrder
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, InvalidParameter, UnsupportedFeature
from engine.llm.start import loading
from engine.planning.plain_text import plan_table
from engine.planning.planner import make_plan
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.host import Host
from tests.helpers.models.checkpoints import in_folder

SHAPES = Path(loading.__file__).parents[2] / "data" / "shapes"


def order(model, tmp_path, **changes):
    values = {
        "model": str(model),
        "config": EngineConfig(device="cpu", num_threads=1),
        "cache_dir": tmp_path,
        "offline": True,
    }
    return PlanningOrder(**(values | changes))


def made(*arguments, **changes):
    return make_plan(order(*arguments, **changes), lambda message: None)


def test_a_plan_is_json_and_has_measured_speeds_here(tiny_llama, tmp_path):
    plan = made(tiny_llama(), tmp_path, context=100)
    assert json.loads(json.dumps(plan)) == plan
    assert (plan["kind"], plan["context"], plan["concurrency"]) == ("text", 100, 1)
    for row in plan["rows"]:
        assert row["decode_tokens_per_s"] > 0 and row["prefill_tokens_per_s"] > 0
        assert row["total_bytes"] == sum(
            row[f"{part}_bytes"] for part in ("process", "weight", "kv", "adapter", "step")
        )
    assert {row["kv_cache_dtype"] for row in plan["rows"]} == {"bfloat16", "int8"}


def test_a_plan_for_replicas_is_for_each_of_them(tiny_llama, tmp_path):
    """On one GPU they share its memory and speed, on several each has one of its own."""
    folder, number = tiny_llama(), random.randint(2, 5)

    def planned(concurrency, **config):
        wanted = EngineConfig(device=config.pop("device", "auto"), **config)
        return made(folder, tmp_path, gpu="l4", concurrency=concurrency, context=64, config=wanted)

    alone = planned(3)
    context_bytes = alone["rows"][0]["process_bytes"]
    for device, share in (("cuda:0", number), ("cuda", 1)):
        plan = planned(3 * number, device=device, replicas=number)
        assert (plan["replicas"], plan["concurrency"]) == (number, 3)
        left = alone["free_bytes"] - (share - 1) * context_bytes
        assert plan["free_bytes"] == left // share
        for row, other in zip(plan["rows"], alone["rows"], strict=True):
            assert row["total_bytes"] == other["total_bytes"]
            assert row["decode_tokens_per_s"] * share == pytest.approx(other["decode_tokens_per_s"])
        assert f"each of {number} replicas, 3 texts" in plan_table(plan)


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


def test_adapters_take_what_was_planned(tiny_llama, tmp_path):
    """The adapters include whole modules and other ranks, layer by layer."""
    folder = tiny_llama()
    options = {
        "a": {"r": 5, "rank_pattern": {"v_proj": 9}},
        "b": {"r": 12, "target_modules": ("k_proj", "down_proj"), "use_dora": True},
        "c": {"r": 3, "target_modules": ("embed_tokens", "lm_head")},
        "d": {"r": 2, "target_modules": ("q_proj",), "modules_to_save": ["model.norm"]},
    }
    for seed, (name, its) in enumerate(options.items()):
        write_adapter(folder, tmp_path / name, seed, **its)
    config = EngineConfig(
        device="cpu",
        num_threads=1,
        num_kv_blocks=64,
        lora=tuple(f"{name}={tmp_path / name}" for name in options),
    )
    checkpoint = in_folder(folder)
    engine, _ = loading.load_engine(checkpoint, "t", config, Host())
    plan = made(folder, tmp_path, config=config, context=100)
    adapters = plan["adapters"]
    assert adapters["place_bytes"] == engine.texts._adapters.num_bytes > 0
    assert (adapters["ranks"], adapters["num_read"]) == ([2, 3, 5, 9, 12], 4)
    of_rows = {row["quantization"]: row["adapter_bytes"] for row in plan["rows"]}
    assert of_rows["none"] == adapters["place_bytes"]
    assert 0.5 < of_rows["int8"] / of_rows["none"] < 0.9, "8 bits, but for embeddings and norms"
    engine, _ = loading.load_engine(checkpoint, "t", replace(config, quantization="int8"), Host())
    assert engine.texts._adapters.num_bytes == of_rows["int8"]
    exact = replace(config, lora_dtype="model")
    rows = made(folder, tmp_path, config=exact, context=100)["rows"]
    assert {row["adapter_bytes"] for row in rows} == {adapters["place_bytes"]}
    turns = made(folder, tmp_path, config=replace(config, max_loras=1), context=100)["adapters"]
    assert turns["place_bytes"] < adapters["place_bytes"] and turns["copy_bytes"] > 0


def test_adapters_that_would_not_be_served_are_named(tiny_llama, tmp_path):
    write_adapter(tiny_llama(), tmp_path / "a")
    lora = (f"a={tmp_path / 'a'}", f"b={tmp_path}", "far=org/far")
    config = EngineConfig(device="cpu", num_threads=1, lora=lora)
    plan = made(tiny_llama(), tmp_path, config=config, context=100)
    assert plan["adapters"]["num_read"] == 1
    assert plan["adapters"]["failed"].keys() == {"b", "far"}
    text = plan_table(plan)
    assert "b cannot be served: adapter_config.json" in text
    assert "far cannot be served" in text and "offline" in text


def test_adapters_of_image_models(tmp_path):
    tensors = {
        "unet.a.lora_A.weight": torch.zeros(4, 8),
        "unet.a.lora_B.weight": torch.zeros(8, 4),
        "unet.a.alpha": torch.ones(()),
    }
    for name in "ab":
        save_file(tensors, tmp_path / f"{name}.safetensors")
    lora = tuple(f"{name}={tmp_path / name}.safetensors" for name in "abc")
    config = EngineConfig(lora=lora, max_loras=1)
    plan = made(SHAPES, tmp_path, config=config, gpu="4090")
    assert {row["adapter_bytes"] for row in plan["rows"]} == {2 * 64}
    assert "c cannot be served" in plan_table(plan)


def test_models_that_embed_are_not_planned(tiny_llama, tmp_path):
    wanted = EngineConfig(device="cpu", kind="embedding")
    words = "makes embeddings; plans exist only for models that make text"
    with pytest.raises(UnsupportedFeature, match=words):
        made(tiny_llama(), tmp_path, config=wanted)


def test_a_model_that_does_not_fit_is_told_what_would(tiny_llama, tiny_mamba2):
    checkpoint = in_folder(tiny_llama())

    def hint(words, has=("weights", "steps", "structures"), **changes):
        config = EngineConfig(device="cpu", num_threads=1, **changes)
        with pytest.raises(InsufficientMemory, match=words) as caught:
            loading.load_engine(checkpoint, "t", config, Host(lambda purpose: purpose in has))
        return caught.value.hint

    found = hint("no memory for KV cache")
    assert "tiny on this machine" in found
    assert "1 text of 512 tokens at a time" in found
    assert "Fits with" in found
    found = hint("no memory for KV cache", kv_cache_memory_gib=random.choice([50, 1000]))
    assert "the model itself fits" in found
    assert "Fits with" not in found, "no table that says yes"
    found = hint("lower max_model_len to 32", max_model_len=512, num_kv_blocks=2)
    assert "--kv-cache-dtype int8" in found
    assert "recurrent" not in found
    checkpoint = in_folder(tiny_mamba2())
    found = hint("no memory for weights", has=(), max_num_seqs=9)
    assert "are recurrent states of 9 texts; a lower max_num_seqs needs less" in found
