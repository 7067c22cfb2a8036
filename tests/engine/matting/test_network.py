"""Networks run by onnxruntime: made here, and the real one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.matting.network import OnnxNetwork, load_network
from engine.matting.network_files import read_facts
from engine.runtime.fault import Unusable
from tests.helpers.matting import onnx_writer as onnx


def load(folder: Path, data: bytes, name: str = "a.onnx") -> OnnxNetwork:
    path = folder / name
    path.write_bytes(data)
    return load_network(path, read_facts(path), 1)


def half_bright(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = 255
    return image


@pytest.mark.parametrize(("height", "width"), [(200, 100), (20, 30), (1, 2), (64, 64)])
def test_a_mask_is_from_0_to_1(height: int, width: int, tmp_path: Path) -> None:
    mask = load(tmp_path, onnx.brightness_network()).mask(half_bright(height, width))
    assert mask.shape == (64, 64)
    assert mask.dtype == np.float32
    assert mask[:, :20].max() < 0.01 and mask[:, -20:].min() > 0.99


def test_nothing_is_kept_for_the_makers_of_the_library(tmp_path: Path) -> None:
    """Its telemetry keeps a device's id and events to send in the user's folder."""
    (tmp_path / "a.onnx").write_bytes(onnx.brightness_network())
    program = (
        "import os, sys, pathlib\n"
        "from engine.matting.network import load_network\n"
        "from engine.matting.network_files import read_facts\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "load_network(path, read_facts(path), 1)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.onnx")],
        check=True,
        cwd=Path(__file__).parents[3],
        env=environment | {"HOME": str(home)},
    )
    assert [path.name for path in home.rglob("*") if "onnx" in path.name] == []


def test_no_subject_stays_none(tmp_path: Path) -> None:
    """A mask that is nearly flat is not stretched."""
    mask = load(tmp_path, onnx.brightness_network()).mask(np.zeros((50, 50, 3), np.uint8))
    assert mask.max() < 0.05


def test_weights_beside_it_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.full(3, 10, "<f4").tobytes())
    data = onnx.brightness_network(weights=onnx.external_tensor("w", [1, 3, 1, 1], "w.bin"))
    assert load(tmp_path, data).mask(half_bright(50, 50)).max() > 0.99


def test_other_networks_are_refused(tmp_path: Path) -> None:
    for data in (
        onnx.brightness_network(kind=onnx.INT64),
        onnx.model(
            onnx.field(1, onnx.node("Evil", ["image"], ["mask"], domain="com.evil"))
            + onnx.field(2, "g")
            + onnx.field(11, onnx.value("image", [1, 3, 64, 64]))
            + onnx.field(12, onnx.value("mask", [1, 1, 64, 64]))
        ),
        onnx.brightness_network(extra=onnx.field(11, onnx.value("more", [1]))),
    ):
        with pytest.raises(ModelLoadError):
            load(tmp_path, data)


def test_what_a_network_is_not_for_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="3 colours"):
        load(tmp_path, onnx.brightness_network(channels=1))


def test_numbers_that_are_none_are_an_answer(tmp_path: Path) -> None:
    weights = onnx.tensor("w", [1, 3, 1, 1], [float("nan")] * 3)
    network = load(tmp_path, onnx.brightness_network(weights=weights))
    with pytest.raises(Unusable, match="not finite"):
        network.mask(half_bright(50, 50))
