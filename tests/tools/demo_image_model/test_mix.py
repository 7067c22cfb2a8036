from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.demo_image_model.mix import UNET, mix


def folder(path: Path, **tensors: torch.Tensor) -> Path:
    (path / UNET).parent.mkdir(parents=True)
    save_file(tensors, path / UNET)
    (path / "model_index.json").write_text(path.name)
    return path


def test_averages_the_unets_and_takes_the_rest_from_the_first(tmp_path: Path) -> None:
    a, b = torch.randn(3, 4).half(), torch.randn(3, 4).half()
    first, second = folder(tmp_path / "first", w=a), folder(tmp_path / "second", w=b)
    mix(first, second, 0.7, tmp_path / "out")
    mixed = load_file(tmp_path / "out" / UNET)["w"]
    assert mixed.dtype is torch.float16
    expected = 0.7 * a.double() + 0.3 * b.double()
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-3, atol=1e-3)
    assert (tmp_path / "out" / "model_index.json").read_text() == "first"


def test_refuses_other_shapes_and_shares_beyond_one(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", w=torch.zeros(3))
    second = folder(tmp_path / "second", w=torch.zeros(4))
    with pytest.raises(ValueError, match="different tensors"):
        mix(first, second, 0.5, tmp_path / "out")
    with pytest.raises(ValueError, match="from 0 to 1"):
        mix(first, first, 1.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
