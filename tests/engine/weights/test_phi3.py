"""Phi-3 and Phi-4 from config.json and from GGUF: what is read, and the logits that come of it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from tests.helpers.models.checkpoint_logits import logits

LONG, SHORT = [1.5, 2.0, 3.0, 5.0, 8.0, 12.0], [1.0, 1.25, 1.5, 2.0, 3.0, 4.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 250000.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
}


def as_gguf(folder: Path, make_gguf: Any, **changes: Any) -> Path:
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
    path: Path = make_gguf(folder, "phi3", **{"extra": extra} | keys | changes)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 24, "num_key_value_heads": 4},
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
    ],
    ids=["phi4", "phi3", "phi4_mini"],
)
def test_folder_and_gguf_give_the_logits_of_transformers(options, tiny_phi3, make_gguf):
    seed = random.randrange(1 << 16)
    folder = tiny_phi3(seed=seed, rms_norm_eps=2.0**-17, **options)
    in_folder = Checkpoint("folder", folder, "tiny")
    in_gguf = Checkpoint("gguf", as_gguf(folder, make_gguf), "tiny")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = random.Random(seed)
    text = [rng.randrange(theirs.config.vocab_size) for _ in range(70)]
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0]
    for checkpoint in (in_folder, in_gguf):
        error = (logits(checkpoint, text) - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, f"{checkpoint.layout}: {error}, seed {seed}"
    read, read_gguf = (load_model_config(c) for c in (in_folder, in_gguf))
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
    folder: Path = tiny_phi3()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    lists = {"short_factor": SHORT, "long_factor": LONG}
    config |= {
        "rope_theta": 5e5,
        "rope_scaling": {"type": name, **lists},
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
    }
    path.write_text(json.dumps(config))
    read = load_model_config(Checkpoint("folder", folder, "tiny"))
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
    folder: Path = tiny_phi3(rope_parameters=LONGROPE, original_max_position_embeddings=32)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=words):
        load_model_config(Checkpoint("folder", folder, "tiny"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("phi3.rope.scaling.type", "linear", "scaling.type is 'linear'; it must be none or longr"),
        ("phi3.rope.dimension_count", 18, "rope.dimension_count is 18"),
        ("phi3.rope.dimension_count", 5, "rope.dimension_count is 5"),
        ("phi3.rope.scaling.attn_factor", "big", "attn_factor is 'big'"),
        ("phi3.rope.scaling.original_context_length", 0, "original_context_length is 0"),
        ("phi3.attention.sliding_window", "wide", "sliding_window is 'wide'"),
    ],
)
def test_nonsense_in_gguf_is_named(key, value, words, tiny_phi3, make_gguf):
    folder = tiny_phi3(rope_parameters=LONGROPE, original_max_position_embeddings=32)
    path = as_gguf(folder, make_gguf, **{key: value})
    with pytest.raises(ModelLoadError, match=words):
        load_model_config(Checkpoint("gguf", path, "tiny"))


def test_divisors_that_are_no_numbers(tiny_phi3, make_gguf):
    folder = tiny_phi3(rope_parameters=LONGROPE, original_max_position_embeddings=32)
    extra = {
        "rope_factors_long.weight": np.array(LONG, np.float32),
        "rope_factors_short.weight": np.full(6, np.nan, np.float32),
    }
    path = as_gguf(folder, make_gguf, extra=extra)
    with pytest.raises(ModelLoadError, match="short_factor is"):
        load_model_config(Checkpoint("gguf", path, "tiny"))
