from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from engine.lora.peft_files import ModelShapes, plan_adapter
from loadtest.random_adapters import layer_shapes, write_random_adapter

SIZES = {"model.layers.0.self_attn.q_proj": (192, 256), "model.layers.0.mlp.up_proj": (512, 256)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model.safetensors"
    weights = {f"{name}.weight": np.zeros(size, np.float16) for name, size in SIZES.items()}
    others = {"model.norm.weight": (256,), "model.layers.0.self_attn.q_proj.bias": (192,)}
    weights |= {name: np.zeros(size, np.float16) for name, size in others.items()}
    save_file(weights, path, {"format": "pt"})
    return path


def test_layers_are_found_by_the_ends_of_their_names(base: Path) -> None:
    assert layer_shapes(base, ["q_proj", "mlp.up_proj"]) == SIZES
    assert list(layer_shapes(base, ["up_proj"])) == ["model.layers.0.mlp.up_proj"]
    for layer in ("proj", "norm"):
        with pytest.raises(ValueError, match=f"no layers called {layer}"):
            layer_shapes(base, [layer])


def test_an_adapter_is_read_as_it_was_written(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_adapter(tmp_path / name, SIZES, 16, seed)
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c
    updates = plan_adapter(tmp_path / "a", ModelShapes(SIZES), torch.float32).read().updates
    assert updates.keys() == SIZES.keys()
    for update in updates.values():
        assert (update.rank, update.scale) == (16, 1.0)
        assert (update.a.T @ update.b).std().item() == pytest.approx(0.002, rel=0.15)
