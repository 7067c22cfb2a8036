"""GGUF files of families whose tensors llama.cpp's converter changes, beside their checkpoints."""

import random

import pytest
import torch

from engine.weights.loader import load_model_config
from tests.helpers.models.checkpoints import in_folder, in_gguf, logits
from tests.helpers.models.gguf_converter import CONVERSIONS, convert


@pytest.fixture(params=CONVERSIONS)
def family(request):
    return str(request.param)


@pytest.fixture
def folder(family, request):
    make = request.getfixturevalue(f"tiny_{family}")
    return make(seed=random.randrange(1 << 16), **CONVERSIONS[family].sizes)


def test_folder_and_gguf_give_the_same_logits(folder, family):
    both = in_folder(folder), in_gguf(convert(folder, family))
    config = load_model_config(both[0])
    text = [random.randrange(config.vocab_size) for _ in range(70)]
    expected, found = (logits(one, text) for one in both)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 2e-5, f"{error}, text {text}"
    assert torch.isfinite(found).all()
