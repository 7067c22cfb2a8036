"""Requests to engines with packed weights, and how alike the texts of two engines are."""

import random
from pathlib import Path
from typing import Any

import pytest

from engine.contract.generate import GenerateRequest
from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.models.layers.linear import Linear
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import WeightPlan, plan_weights

CPU = MachineFacts(device="cpu", num_cores=1, free_memory_bytes=1 << 40)


def plan_of(path: Path, machine: MachineFacts = CPU, **knobs: Any) -> WeightPlan:
    """Plan the weights of a GGUF file or of a folder."""
    checkpoint = Checkpoint("folder" if path.is_dir() else "gguf", path, "m")
    return plan_weights(checkpoint, load_model_config(checkpoint), EngineConfig(**knobs), machine)


def states_of(model: Any) -> list[Any]:
    """The states of all linear layers and of the output layer."""
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    return [*(state for m in linears for _, state in m._parts), model.lm_head._state]


def requests_of(engines: Any, seed: int | str, **sampling: Any) -> list[GenerateRequest]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 60) for _ in range(rng.randrange(1, 40))] for _ in range(5)]
    return [
        engines.request(str(i), p, **({"max_tokens": 8, "ignore_eos": True} | sampling))
        for i, p in enumerate(prompts)
    ]


def assert_alike(found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    """Assert that two runs have the same tokens and nearly the same scores."""
    assert found.keys() == wanted.keys()
    for key, one in wanted.items():
        assert found[key].token_ids == one.token_ids
        ours = [entry.logprob for entry in found[key].logprobs]
        assert ours == pytest.approx([entry.logprob for entry in one.logprobs], abs=1e-3)
