"""Requests to engines with packed weights, and how alike the texts of two engines are."""

import random
from typing import Any

import pytest

from engine.contract.generate import GenerateRequest


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
