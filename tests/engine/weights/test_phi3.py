"""Phi-3 and Phi-4 from config.json and from GGUF: what is read, and the logits that come of it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.weights.loader import load_model_config
from tests.helpers.models.checkpoints import (
    assert_logits_of_transformers,
    in_folder,
    in_gguf,
)
from tests.helpers.models.json_files import change_json

LONG, SHORT = [1.5, 2.0, 3.0, 5.0, 8.0, 12.0], [1.0, 1.25, 1.5, 2.0, 3.0, 4.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 250000.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
}
STRETCHED = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
"""The configuration of a model with these divisors."""


def as_gguf(folder: Path, make_gguf: Any, **changes: Any) -> Any:
    """Write GGUF with what llama.cpp's converter adds for Phi-3."""
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    keys = {
        "phi3.rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "phi3.rope.scaling.original_context_length": config["original_max_position_embeddings"],
        "phi3.attention.sliding_window": config["sliding_window"] or 0,
        "phi3.attention.key_length": None,
    }
    extra = {}
    if rope["rope_type"] == "longrope":
        keys["phi3.rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(16) / np.log(32)))
        extra = {
            "rope_factors_long.weight": np.array(LONG, np.float32),
            "rope_factors_short.weight": np.array(SHORT, np.float32),
        }
    return make_gguf(folder, "phi3", **{"extra": extra} | keys | changes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 24, "num_key_value_heads": 4},
        STRETCHED | {"tie_word_embeddings": True},
    ],
    ids=["phi4", "phi3", "phi4_mini"],
)
def test_folder_and_gguf_give_the_logits_of_transformers(options, tiny_phi3, make_gguf):
    folder = tiny_phi3(seed=random.randrange(1 << 16), rms_norm_eps=2.0**-17, **options)
    both = in_folder(folder), in_gguf(as_gguf(folder, make_gguf))
    assert_logits_of_transformers(folder, *both)
    read, read_gguf = map(load_model_config, both)
    assert without_factor(read) == without_factor(read_gguf)
    factors = [
        (config.rope_scaling or {}).get("attention_factor", 1.0) for config in (read, read_gguf)
    ]
    assert factors[0] == pytest.approx(factors[1])


def without_factor(config: ModelConfig) -> ModelConfig:
    """GGUF has it in fp32."""
    scaling = config.rope_scaling and config.rope_scaling | {"attention_factor": None}
    return replace(config, rope_scaling=scaling)


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_reads_what_older_files_say(name, tiny_phi3):
    folder = tiny_phi3()
    change_json(
        folder / "config.json",
        rope_parameters=...,
        rope_theta=5e5,
        rope_scaling={"type": name, "short_factor": SHORT, "long_factor": LONG},
        partial_rotary_factor=0.75,
        original_max_position_embeddings=32,
    )
    read = load_model_config(in_folder(folder))
    assert (read.rope_theta, read.rotary_dim) == (5e5, 12)
    assert read.rope_scaling == {
        "rope_type": "longrope",
        "short_factor": tuple(SHORT),
        "long_factor": tuple(LONG),
        "original_max_position_embeddings": 32,
        "attention_factor": pytest.approx((1 + np.log(16) / np.log(32)) ** 0.5),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor is 0.2; .* is even"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor is 0"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor is 2"),
        ({"rope_type": 7}, "rope_type is 7"),
        ({"short_factor": None}, "no short_factor"),
        ({"long_factor": "wide"}, "long_factor is 'wide'"),
        ({"long_factor": [1.0, 0.0]}, "long_factor is"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"factor": -1}, "factor is -1"),
        ({"attention_factor": "big"}, "attention_factor is 'big'"),
    ],
)
def test_nonsense_is_named(changes, words, tiny_phi3):
    folder = tiny_phi3(**STRETCHED)
    change_json(folder / "config.json", rope_parameters=LONGROPE | changes)
    with pytest.raises(ModelLoadError, match=words):
        load_model_config(in_folder(folder))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("phi3.rope.scaling.type", "linear", "scaling.type is 'linear'; it must be none or longr"),
        ("phi3.rope.dimension_count", 18, "rope.dimension_count is 18"),
        ("phi3.rope.dimension_count", 5, "rope.dimension_count is 5"),
        ("phi3.rope.scaling.attn_factor", "big", "attn_factor is 'big'"),
        ("phi3.rope.scaling.original_context_length", 0, "original_context_length is 0"),
        ("phi3.attention.sliding_window", "wide", "sliding_window is 'wide'"),
        (
            "extra",
            {
                "rope_factors_long.weight": np.array(LONG, np.float32),
                "rope_factors_short.weight": np.full(6, np.nan, np.float32),
            },
            "short_factor is",
        ),
    ],
)
def test_nonsense_in_gguf_is_named(key, value, words, tiny_phi3, make_gguf):
    path = as_gguf(tiny_phi3(**STRETCHED), make_gguf, **{key: value})
    with pytest.raises(ModelLoadError, match=words):
        load_model_config(in_gguf(path))
