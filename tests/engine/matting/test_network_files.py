"""ONNX files of strangers: what may be loaded, and what it expects."""

import contextlib
import json
import random
from pathlib import Path

import pytest

from engine.errors import CorruptFile, ModelLoadError, UnsupportedArchitecture
from engine.matting import network_files
from engine.matting.network_files import NetworkFacts, read_facts
from tests.helpers.matting import onnx_writer as onnx


def write(folder: Path, data: bytes, name: str = "a.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def outside(location: str) -> bytes:
    return onnx.brightness_network(weights=onnx.external_tensor("w", [1, 3, 1, 1], location))


@pytest.mark.parametrize(
    "location",
    ["../w.bin", "/etc/passwd", "sub/w.bin", "..", ".", "", "a\\b", "missing.bin", "a\0b"],
)
def test_weights_elsewhere_are_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.bin").write_bytes(bytes(12))
    with pytest.raises(ModelLoadError, match="only regular files beside it"):
        read_facts(write(tmp_path, outside(location)))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").symlink_to("/etc/passwd")
    with pytest.raises(ModelLoadError, match="only regular files beside it"):
        read_facts(write(tmp_path, outside("w.bin")))


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(12))
    assert read_facts(write(tmp_path, outside("w.bin"))).architecture == "BiRefNet"


def test_weights_of_inner_graphs_are_seen(tmp_path: Path) -> None:
    """In an attribute of a node of a function, in a sparse tensor, and in a training graph."""
    secret = onnx.external_tensor("w", [3], "/etc/shadow")
    inner = onnx.field(1, onnx.node("If", [], ["y"], onnx.field(6, onnx.field(5, secret))))
    places = [
        onnx.field(25, onnx.field(7, onnx.node("Constant", [], ["y"], onnx.field(5, secret)))),
        onnx.field(20, onnx.field(1, inner)),
        onnx.field(7, onnx.field(15, onnx.field(1, secret))),
        onnx.field(7, inner),
    ]
    for place in places:
        with pytest.raises(ModelLoadError, match="only regular files beside it"):
            read_facts(write(tmp_path, onnx.brightness_network() + place))


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    whole = onnx.brightness_network()
    for data in (b"", b"\x08\x08", b"GGUF" * 9, whole[:-3], b"\x3a\xff\xff\xff\xff\x7f"):
        with pytest.raises(CorruptFile):
            read_facts(write(tmp_path, data))


def test_any_damage_is_an_answer(tmp_path: Path) -> None:
    whole = onnx.brightness_network()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        with contextlib.suppress(ModelLoadError):
            read_facts(write(tmp_path, bytes(data)))


def test_deep_nesting_and_many_fields_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = b""
    for _ in range(100):
        graph = onnx.field(1, onnx.node("If", [], ["y"], onnx.field(6, graph)))
    with pytest.raises(CorruptFile, match="deep"):
        read_facts(write(tmp_path, onnx.model(graph)))
    monkeypatch.setattr(network_files, "MAX_FIELDS", 1000)
    with pytest.raises(CorruptFile, match="fields"):
        read_facts(write(tmp_path, onnx.model(onnx.field(9, 1) * 2000)))


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(CorruptFile, match="folder"):
        read_facts(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("name", "architecture", "mean", "by_brightest"),
    [
        ("u2netp.onnx", "U2Net", 0.485, True),
        ("isnet-general-use.onnx", "ISNet", 0.5, True),
        ("RMBG-1.4.onnx", "ISNet", 0.5, True),
        ("BiRefNet-general.onnx", "BiRefNet", 0.485, False),
    ],
)
def test_classes_by_their_names(name, architecture, mean, by_brightest, tmp_path):
    facts = read_facts(write(tmp_path, onnx.brightness_network(), name))
    found = (facts.architecture, facts.mean[0], facts.scales_by_brightest)
    assert found == (architecture, mean, by_brightest)


@pytest.mark.parametrize("inner", ["", "onnx"])
def test_a_preprocessor_wins(inner: str, tmp_path: Path) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    keys = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "size": {"height": 512}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(keys))
    facts = read_facts(write(tmp_path / inner, onnx.brightness_network("s"), "model.onnx"))
    assert (list(facts.mean), list(facts.std), facts.side) == ([0.1, 0.2, 0.3], [1, 2, 3], 512)


@pytest.mark.parametrize(
    "keys",
    [
        {"image_mean": [1, 2]},
        {"image_std": [0, 1, 1]},
        {"image_std": "wide"},
        {"image_mean": [float("inf")] * 3},
        {"size": "large"},
    ],
)
def test_a_broken_preprocessor_is_refused(keys: object, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(keys))
    with pytest.raises(ModelLoadError):
        read_facts(write(tmp_path, onnx.brightness_network()))


@pytest.mark.parametrize(
    "shape", [[1, 3, 320, 200], [2, 3, 64, 64], [1, 1, 64, 64], [1, 3, 8, 8], [1, 3, 9999, 9999]]
)
def test_other_shapes_are_refused(shape: list[int]) -> None:
    with pytest.raises(UnsupportedArchitecture):
        NetworkFacts(architecture="BiRefNet").with_shapes("x", shape, "y")


def test_sizes_may_be_free() -> None:
    facts = NetworkFacts(architecture="BiRefNet").with_shapes("x", ["n", 3, "h", "w"], "y")
    assert (facts.side, facts.input, facts.output) == (1024, "x", "y")
    small = NetworkFacts(architecture="BiRefNet").with_shapes("x", ["n", 3, 320, 320], "y")
    assert (small.architecture, small.scales_by_brightest) == ("U2Net", True)
