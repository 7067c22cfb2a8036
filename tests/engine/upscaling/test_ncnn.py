"""ncnn's files: what we make of them is what ncnn does, and hostile ones are refused cheaply."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import CorruptFile, ModelLoadError, UnsupportedArchitecture
from engine.upscaling.ncnn.graph import NcnnGraph
from engine.upscaling.ncnn.param import read_param
from engine.upscaling.ncnn.recognition import recognised
from engine.upscaling.ncnn.weights import FULL, HALF, WeightReader
from engine.upscaling.rrdb import RrdbNet
from engine.upscaling.srvgg import CompactNet
from tests.helpers.upscaling.ncnn_files import NcnnWriter, write_compact, write_rrdb
from tests.helpers.upscaling.upscaling_nets import compact_net, rrdb_net


def graph_of(param: Path) -> NcnnGraph:
    reader = WeightReader(param.with_suffix(".bin"))
    return NcnnGraph(read_param(param), reader).eval().requires_grad_(False)


def halved(net: torch.nn.Module) -> None:
    """Weights of convolutions as 16 bits keep them."""
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.half().float()


@pytest.mark.parametrize("tag", [HALF, FULL, 0])
def test_a_compact_network_is_recognised(tag: int, tmp_path: Path) -> None:
    net = compact_net(scale=4)
    if tag == HALF:
        halved(net)
    graph = graph_of(write_compact(net, tmp_path, tag=tag))
    image = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(graph(image), net(image))
    found = recognised(graph)
    assert isinstance(found, CompactNet)
    torch.testing.assert_close(found(image), net(image))
    assert graph.facts.receptive_radius is not None
    assert found.facts.receptive_radius == net.facts.receptive_radius


def test_an_esrgan_is_recognised_and_another_graph_of_such_layers_is_not(tmp_path: Path) -> None:
    net = rrdb_net(num_blocks=2)
    halved(net)
    graph = graph_of(write_rrdb(net, tmp_path))
    image = torch.rand(1, 3, 6, 5)
    torch.testing.assert_close(graph(image), net(image))
    found = recognised(graph)
    assert isinstance(found, RrdbNet)
    torch.testing.assert_close(found(image), net(image))
    assert graph.facts.receptive_radius is not None
    assert graph.facts.receptive_radius >= (found.facts.receptive_radius or 0)
    assert recognised(graph_of(write_rrdb(net, tmp_path, residual=0.3))) is None


@pytest.mark.parametrize("kind", ["compact", "rrdb"])
def test_ncnn_makes_the_same_of_them(kind: str, tmp_path: Path) -> None:
    ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed")
    net = compact_net(scale=4) if kind == "compact" else rrdb_net()
    param = (write_compact if kind == "compact" else write_rrdb)(net, tmp_path)  # type: ignore[operator]
    image = torch.rand(3, 11, 8)
    other = ncnn.Net()
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(other.opt, f"use_{option}", False)
    other.load_param(str(param))
    other.load_model(str(param.with_suffix(".bin")))
    extractor = other.create_extractor()
    extractor.input("data", ncnn.Mat(image.numpy()).clone())
    last = param.read_text().split("\n")[-2].split()
    _, made = extractor.extract(last[4 + int(last[2])])
    found = graph_of(param)(image[None])[0]
    np.testing.assert_allclose(found.numpy(), np.array(made), atol=1e-3, rtol=1e-3)


def test_weights_that_end_early_or_late_are_refused(tmp_path: Path) -> None:
    param = write_compact(compact_net(), tmp_path)
    weights = param.with_suffix(".bin")
    whole = weights.read_bytes()
    for _ in range(20):
        weights.write_bytes(whole[: random.randrange(len(whole))])
        with pytest.raises(CorruptFile):
            graph_of(param)
    weights.write_bytes(whole + b"\0\0\0\0")
    with pytest.raises(CorruptFile, match="more than"):
        graph_of(param)
    weights.unlink()
    with pytest.raises(ModelLoadError):
        graph_of(param)


CANNOT_BE = [
    ("7767517", "7767518"),
    ("0=8", "0=100000000000"),
    ("0=8", "0=-8"),
    ("6=216", "6=4000000000000"),
    ("6=216", "6=215"),
    ("1=3", "1=101"),
    ("0=8", "0=8.5"),
    ("6=216", "6=216 9=2 -23310=7,0.5"),
    ("Input input 0 1 data", "Input input 0 1000000000 data"),
    ("data_0 b1", "nothing b1"),
    ("b1 0=", "data 0="),
    ("0=2", "0=1000000"),
]
COMPUTED_OTHERWISE = [
    ("PReLU", "Softmax"),
    ("1=3 4=1", "1=3 3=2 4=1"),
    ("1=3 4=1", "1=3 4=0"),
    ("5=1", "5=1 9=4"),
    ("0=1 1=2", "0=2 1=2"),
    ("b8 b9 b10 0=0", "b8 b9 b10 0=3"),
]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [(*edit, CorruptFile) for edit in CANNOT_BE]
    + [(*edit, UnsupportedArchitecture) for edit in COMPUTED_OTHERWISE],
)
def test_graphs_that_cannot_be_or_would_be_computed_otherwise_are_refused(
    old: str, new: str, error: type[Exception], tmp_path: Path
) -> None:
    param = write_compact(compact_net(), tmp_path)
    text = param.read_text()
    assert old in text
    param.write_text(text.replace(old, new, 1))
    with pytest.raises(error):
        graph_of(param)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    param = write_compact(compact_net(), tmp_path)
    text = param.read_bytes()
    for _ in range(100):
        broken = bytearray(text)
        for _ in range(3):
            broken[random.randrange(len(broken))] = random.randrange(256)
        param.write_bytes(bytes(broken))
        try:
            graph_of(param)
        except ModelLoadError:
            continue


def test_packed_weights_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    table = np.arange(256, dtype="<f4") / 7
    path.write_bytes(struct.pack("<I", 1) + table.tobytes() + bytes([3, 250, 0, 0]))
    reader = WeightReader(path)
    assert reader.packed(3).tolist() == pytest.approx([3 / 7, 250 / 7, 0.0])
    reader.close()
    path.write_bytes(struct.pack("<I", 0x000D4B38) + bytes(8))
    with pytest.raises(CorruptFile, match="8 bits"):
        WeightReader(path).packed(2)


def test_two_inputs_are_not_an_upscaler(tmp_path: Path) -> None:
    writer = NcnnWriter()
    writer.lines.append("Input other 0 1 more")
    writer.layer("BinaryOp", ["data", "more"], "0=0")
    with pytest.raises(UnsupportedArchitecture):
        graph_of(writer.save(tmp_path))
