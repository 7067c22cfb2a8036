"""Checkpoints of models, the number of their weights, and their logits."""

import math
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.models.registry import create_model
from engine.weights.loader import iter_weights, load_model_config, weight_headers
from engine.weights.source import Checkpoint
from tests.helpers.models.tiny_pairs import run_alone, their_logits


def in_folder(folder: Path) -> Checkpoint:
    return Checkpoint("folder", folder, "tiny")


def in_gguf(path: Path) -> Checkpoint:
    return Checkpoint("gguf", path, "tiny")


def num_weights(checkpoint: Checkpoint) -> int:
    """Count the numbers in all tensors, by their headers."""
    headers = weight_headers(checkpoint, load_model_config(checkpoint))
    return sum(math.prod(header.shape) for header in headers.values())


def logits(checkpoint: Checkpoint, token_ids: list[int]) -> torch.Tensor:
    """Compute our logits of a whole text in fp32, [T, V]."""
    config = load_model_config(checkpoint)
    model = create_model(config, dtype=torch.float32)
    assert model.load_weights(iter_weights(checkpoint, config)) == []
    return run_alone(model, config, token_ids, [len(token_ids)])


def assert_logits_of_transformers(folder: Path, *checkpoints: Checkpoint) -> None:
    """Compare our logits of a random text with those of transformers' model in the folder."""
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    text = [random.randrange(theirs.config.vocab_size) for _ in range(70)]
    expected = their_logits(theirs, text)
    for checkpoint in checkpoints:
        # Logits reach 30 and more, so fp32's own steps are as large as 4e-6; a soft cap keeps those
        # steps and makes the largest logit smaller.
        error = (logits(checkpoint, text) - expected).abs().max() / expected.abs().max()
        assert error < 4e-5, f"{checkpoint.layout}: {error}, text {text}"
