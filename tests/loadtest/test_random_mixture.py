import random
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.models.experts_config import ExpertsConfig
from engine.weights.loader import load_model_config
from loadtest import random_mixture
from loadtest.random_mixture import SHAPES, mixture_tensors, write_random_mixture
from tests.helpers.models.checkpoints import in_gguf


@pytest.mark.parametrize("size", SHAPES)
def test_a_mixture_has_the_parameters_of_its_description(size: str) -> None:
    shape = SHAPES[size]
    sizes = {one.name: int(np.prod(one.shape)) for one in mixture_tensors(shape, 49152)}
    experts = sum(count for name, count in sizes.items() if name.endswith("_exps.weight"))
    assert 3e9 < sum(sizes.values()) < 4.2e9
    active = sum(sizes.values()) - experts + experts * shape.chosen / shape.experts
    assert 0.5e9 < active < 1e9


@pytest.mark.parametrize("size", SHAPES)
def test_the_file(
    size: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = random.randint(3, 6)
    small = replace(
        SHAPES[size],
        hidden=64,
        inner=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        experts=experts,
        chosen=2,
    )
    monkeypatch.setitem(random_mixture.SHAPES, size, small)
    path = tmp_path / "mixture.gguf"
    write_random_mixture(path, size, tokenizer)
    config = load_model_config(in_gguf(path))
    assert isinstance(config, ExpertsConfig)
    assert (config.num_experts, config.experts_per_token, config.expert_size) == (experts, 2, 32)
    assert (config.num_hidden_layers, config.head_dim, config.vocab_size) == (2, 16, 300)
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.1.ffn_gate_exps.weight"] == gguf.GGMLQuantizationType.BF16
    assert kinds["blk.1.ffn_gate_inp.weight"] == gguf.GGMLQuantizationType.F32
