"""Decoding by a model of 8 B with random weights, through the whole engine."""

import json
import random
import struct
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from engine.contract.generate import GenerateRequest
from engine.contract.sampling_params import SamplingParams
from engine.llm.engine import LLMEngine
from tools.gpu_exam import texts
from tools.gpu_exam.place import Place
from tools.gpu_exam.record import Facts, Record
from tools.gpu_exam.targets import CEILINGS, MissedTarget, measured_ceilings

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256,
}
BATCHES = (1, 16, 64, 256)
TARGET = 0.8
"""The share of the bandwidth bound at batch 1."""
EMBEDDING = "model.embed_tokens.weight"

Shapes = dict[str, tuple[int, ...]]


def examine(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Load the model once, and decode with each batch."""
    copy = record.run(CEILINGS, lambda: measured_ceilings(place)).get(CEILINGS, {}).get("copy")
    config = LLAMA_3_8B | (SMALL if place.is_rehearsal else {})
    shapes = shapes_of(config)
    read_bytes = 2 * sum(map(_size, (shapes[name] for name in shapes if name != EMBEDDING)))
    bound_s = None if copy is None else read_bytes / copy / 1e9
    with tempfile.TemporaryDirectory() as folder, place.examined():
        write_without_weights(Path(folder), config, shapes)
        engines: list[LLMEngine] = []

        def load() -> None:
            random_weights = partial(weights, shapes, place.device)
            with patch("engine.weights.decoder.iter_weights", random_weights):
                engines.append(texts.loaded(Path(folder), place, **settings(place)))

        for batch in (1, 2) if place.is_rehearsal else BATCHES:

            def run(batch: int = batch) -> Facts:
                if not engines:
                    load()
                return decode(engines[0], batch, bound_s, place)

            record.run(f"decode {batch}", run)


def settings(place: Place) -> dict[str, Any]:
    if place.is_rehearsal:
        return {}
    return {"num_kv_blocks": None, "max_num_seqs": max(BATCHES), "max_num_batched_tokens": 2048}


def decode(engine: LLMEngine, batch: int, bound_s: float | None, place: Place) -> Facts:
    """Answer `batch` prompts at once, and time and profile steps in which all of them decode.

    Raises:
        MissedTarget: a single text takes too much longer than reading the weights.
    """
    num_steps, prompt_len = (1, 2) if place.is_rehearsal else (64, 100)
    sampling = SamplingParams(temperature=0.0, max_tokens=16 + 3 * num_steps, ignore_eos=True)
    for number in range(batch):
        prompt = [random.randrange(3, 250) for _ in range(prompt_len)]
        engine.add(
            GenerateRequest(
                request_id=f"{batch}-{number}",
                model="exam",
                prompt_token_ids=prompt,
                sampling=sampling,
            )
        )
    while sum(len(event.token_ids) for event in engine.step()[0]) < batch:
        pass
    for _ in range(num_steps):  # in which graphs are recorded
        engine.step()
    started_s = time.perf_counter()
    steps = [engine.step()[1] for _ in range(num_steps)]
    step_s = (time.perf_counter() - started_s) / num_steps
    facts: Facts = {
        "step_s": step_s,
        "tokens_per_s": batch / step_s,
        "of_bound": None if bound_s is None else bound_s / step_s,
        "profile": profile(engine, max(1, num_steps // 4), place),
    }
    for part in ("schedule_time_s", "prepare_time_s", "forward_time_s", "sample_time_s"):
        facts[part] = sum(getattr(stats, part) for stats in steps) / num_steps
    for number in range(batch):
        engine.abort(f"{batch}-{number}")
    while engine.has_work():
        engine.step()
    if batch == 1 and not place.is_rehearsal and bound_s and bound_s / step_s < TARGET:
        raise MissedTarget(
            f"{bound_s / step_s:.0%} of the bound; the target is {TARGET:.0%}; {facts}"
        )
    return facts


def profile(engine: LLMEngine, num_steps: int, place: Place) -> list[Facts]:
    """The kernels that took the most time on the device."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU] if place.is_rehearsal else [activity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(num_steps):
            engine.step()
    found = [
        {
            "kernel": event.key[:120],
            "calls_per_step": event.count / num_steps,
            "us_per_step": (event.self_device_time_total or event.self_cpu_time_total) / num_steps,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda one: -one["us_per_step"])[:25]


def shapes_of(config: Facts) -> Shapes:
    """The tensors of a Llama's checkpoint."""
    hidden, inner, vocab = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    of_layer: Shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    layers = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in of_layer.items()
    }
    ends: Shapes = {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    return {EMBEDDING: (vocab, hidden), **layers, **ends}


def write_without_weights(folder: Path, config: Facts, shapes: Shapes) -> None:
    """Write a checkpoint that has the right headers, and a hole where the numbers would be."""
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * _size(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(file.tell() + end)


def weights(
    shapes: Shapes, device: torch.device, *ignored: object
) -> Iterator[tuple[str, torch.Tensor]]:
    """Make the weights on the device, in place of reading them."""
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        yield name, tensor.normal_(float(len(shape) == 1), 0.02)


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)
