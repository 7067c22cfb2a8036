"""Experts in folders and GGUF files: what is read, and the logits that come of it."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import CorruptFile, ModelLoadError
from engine.quantization.gguf import GgufMethod
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import plan_weights
from tests.helpers.models.checkpoints import (
    assert_logits_of_transformers,
    in_folder,
    in_gguf,
    logits,
)

ARCHS = {
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "lfm2_moe": "lfm2moe",
    "hunyuan_moe": "hunyuan-moe",
    "deepseek": "deepseek2",
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "mscale": 0.75,
    "mscale_all_dim": 0.75,
}
PARTS = {"w1": "gate", "w3": "up", "w2": "down"} | {
    f"{part}_proj": part for part in ("gate", "up", "down")
}
EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")


@pytest.fixture(params=ARCHS)
def family(request):
    return str(request.param)


@pytest.fixture
def folder(family, request):
    """A model whose sizes are whole blocks of Q8_0."""
    sizes = {"rms_norm_eps": 2.0**-17}
    if family == "qwen3_moe":
        # llama.cpp has no names for layers without experts beside others.
        sizes["mlp_only_layers"] = []
    if family == "deepseek":
        sizes["rope_parameters"] = YARN
    if family == "lfm2_moe":
        sizes["norm_eps"] = sizes["rms_norm_eps"]
    return request.getfixturevalue(f"tiny_{family}")(seed=random.randrange(1000), **sizes)


def as_gguf(
    folder: Path, family: str, make_gguf: Any, quant: str = "F32", **changes: Any
) -> Checkpoint:
    """Write GGUF as llama.cpp's converter does: a layer's experts are one tensor of three axes."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    is_old = random.random() < 0.5  # Until 2025 files had DeepSeek's kv_b_proj in one tensor.
    stacks: dict[str, dict[int, np.ndarray]] = {}
    single = []
    for name, weight in load_file(folder / "model.safetensors").items():
        if match := EXPERT.fullmatch(name):
            layer, number, part = match.groups()
            stack = stacks.setdefault(f"blk.{layer}.ffn_{PARTS[part]}_exps.weight", {})
            stack[int(number)] = weight
            single.append(name)
        elif name.endswith(".gate.weight"):
            layer = name.split(".")[2]
            stacks[f"blk.{layer}.ffn_gate_inp.weight"] = {-1: weight}
            single.append(name)
        elif name.endswith(".kv_b_proj.weight") and not is_old:
            block = f"blk.{name.split('.')[2]}.attn"
            keys_and_values = weight.reshape(config["num_attention_heads"], -1, weight.shape[1])
            own = config["qk_nope_head_dim"]
            stacks[f"{block}_k_b.weight"] = {-1: keys_and_values[:, :own].swapaxes(1, 2)}
            stacks[f"{block}_v_b.weight"] = {-1: keys_and_values[:, own:]}
            single.append(name)
        elif name.endswith((".expert_bias", ".e_score_correction_bias")):
            stacks[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = {-1: weight}
            single.append(name)
    arch = ARCHS[family]
    num_experts = next(
        config[name]
        for name in ("num_local_experts", "num_experts", "n_routed_experts")
        if config.get(name)
    )
    keys = {
        f"{arch}.expert_count": num_experts,
        f"{arch}.expert_used_count": config.get("num_experts_per_tok") or config["moe_topk"],
        f"{arch}.expert_feed_forward_length": config.get("moe_intermediate_size"),
    }
    if family == "deepseek":
        keys |= _latent_keys(config, is_old)
    whole = {
        name: np.ascontiguousarray(stack[-1])
        if -1 in stack
        else np.stack([stack[i] for i in range(len(stack))])
        for name, stack in stacks.items()
    }
    types = {}
    if quant != "F32":
        kind = gguf.GGMLQuantizationType[quant]
        for name, weight in whole.items():
            if name.endswith("_exps.weight"):
                whole[name] = gguf.quants.quantize(weight, kind)
                types[name] = kind
    path = make_gguf(
        folder, arch, skip_hf=tuple(single), extra=whole, extra_types=types, **(keys | changes)
    )
    return in_gguf(path)


def _latent_keys(config: dict[str, Any], is_old: bool) -> dict[str, Any]:
    """The keys of DeepSeek alone. In new files keys and values have the sizes of those in the
    cache."""
    rotated, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
    of_heads = {"key_length": config["qk_nope_head_dim"] + rotated}
    of_heads["value_length"] = config["v_head_dim"]
    sizes = {
        "head_count_kv": 1,
        "key_length": latent + rotated,
        "value_length": latent,
        **{f"{name}_mla": size for name, size in of_heads.items()},
    }
    keys = {
        **{f"attention.{name}": size for name, size in (of_heads if is_old else sizes).items()},
        "attention.kv_lora_rank": latent,
        "attention.q_lora_rank": config["q_lora_rank"],
        "rope.dimension_count": rotated,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": YARN["factor"],
        "rope.scaling.original_context_length": YARN["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": YARN["beta_fast"],
        "rope.scaling.yarn_beta_slow": YARN["beta_slow"],
        "rope.scaling.yarn_log_multiplier": 0.1 * YARN["mscale"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": random.choice([None, 2]),
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "leading_dense_block_count": config["first_k_dense_replace"],
    }
    return {f"deepseek2.{name}": value for name, value in keys.items()}


def test_folder_and_gguf_give_the_logits_of_transformers(folder, family, make_gguf):
    both = in_folder(folder), as_gguf(folder, family, make_gguf)
    assert_logits_of_transformers(folder, *both)
    theirs, ours = map(load_model_config, both)
    for name in ("architecture", "num_experts", "experts_per_token", "expert_size"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_scores_that_grow_with_the_position(tiny_deepseek, make_gguf):
    folder = tiny_deepseek(rope_parameters=YARN)
    plain, growing = (
        as_gguf(folder, "deepseek", make_gguf, deepseek2__attention__temperature_scale=growth)
        for growth in (None, 2.0)
    )
    text = [random.randrange(400) for _ in range(100)]
    error = (logits(growing, text) - logits(plain, text)).abs().amax(1)
    before = YARN["original_max_position_embeddings"]
    assert error[:before].max() == 0.0
    assert error[before:].max() > 1e-3


def test_quantised_experts_stay_packed(folder, family, make_gguf):
    checkpoint = as_gguf(folder, family, make_gguf, "Q8_0")
    config = load_model_config(checkpoint)
    machine = MachineFacts(device="cpu", free_memory_bytes=1 << 34, num_cores=1)
    intent = EngineConfig(device="cpu", dtype="float32", quantization="gguf")
    plan = plan_weights(checkpoint, config, intent, machine)
    experts = [name for name in plan.layers if ".experts." in name]
    assert len(experts) >= 2 * 3 * config.num_experts
    assert all(isinstance(plan.layers[name].method, GgufMethod) for name in experts)
    weights = dict(iter_weights(checkpoint, config, plan.packed))
    assert all(weights[f"{name}.weight"].dtype is torch.uint8 for name in experts)


@pytest.mark.parametrize(
    ("key", "value"), [("expert_count", 3), ("expert_count", 0), ("expert_used_count", 99)]
)
def test_numbers_that_contradict_the_tensors(key, value, folder, family, make_gguf):
    changes = {f"{ARCHS[family]}.{key}": value}
    checkpoint = as_gguf(folder, family, make_gguf, **changes)
    with pytest.raises((ModelLoadError, CorruptFile)):
        logits(checkpoint, [1, 2, 3])
