"""Networks found by the names and shapes of weights, and their files."""

import importlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch, UnsupportedArchitecture
from engine.upscaling import architectures
from engine.upscaling.architectures import network_of
from engine.upscaling.rrdb import RrdbNet
from engine.upscaling.srvgg import CompactNet
from engine.upscaling.state_dict import read_state_dict
from tests.helpers.upscaling.upscaling_nets import compact_net, drawn, rrdb_net

IMAGE = torch.linspace(0, 1, 3 * 8 * 6).reshape(1, 3, 8, 6)


def old_names(weights: dict[str, Any], blocks: int) -> dict[str, Any]:
    """As ESRGAN's first files have them."""
    rules = (
        (r"conv_first\.", "model.0."),
        (r"body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0."),
        (r"conv_body\.", f"model.1.sub.{blocks}."),
        (r"conv_up1\.", "model.3."),
        (r"conv_up2\.", "model.6."),
        (r"conv_hr\.", "model.8."),
        (r"conv_last\.", "model.10."),
    )
    return _renamed(weights, rules)


def middle_names(weights: dict[str, Any]) -> dict[str, Any]:
    rules = (
        (r"body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"RRDB_trunk.\1.RDB\2.conv\3."),
        (r"conv_body\.", "trunk_conv."),
        (r"conv_up(\d)\.", r"upconv\1."),
        (r"conv_hr\.", "HRconv."),
    )
    return _renamed(weights, rules)


def _renamed(weights: dict[str, Any], rules: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    named = {}
    for name, tensor in weights.items():
        for pattern, new in rules:
            name = re.sub("^" + pattern, new, name)
        named[name] = tensor
    return named


def spandrel_or_skip() -> Any:
    try:
        return importlib.import_module("spandrel")
    except Exception as error:
        pytest.skip(f"spandrel, or torchvision for this build of torch, is not there: {error}")


@pytest.mark.parametrize(
    "changes", [{}, {"num_blocks": 2, "features": 12}, {"shuffle": 2}, {"num_doublings": 3}]
)
def test_an_esrgan_by_all_of_its_names(changes: dict[str, int]) -> None:
    net = rrdb_net(**changes)
    weights = net.state_dict()
    blocks = changes.get("num_blocks", 1)
    named = [weights, middle_names(weights)]
    if changes.get("num_doublings", 2) == 2:
        named.append(old_names(weights, blocks))
    for given in named:
        found = network_of(given)
        assert isinstance(found, RrdbNet)
        assert found.facts == net.facts
        torch.testing.assert_close(found(IMAGE), net(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize(("num_convs", "scale"), [(1, 1), (3, 2), (2, 4)])
def test_a_compact_one(num_convs: int, scale: int) -> None:
    net = compact_net(num_convs, scale)
    found = network_of(net.state_dict())
    assert isinstance(found, CompactNet) and found.facts == net.facts
    torch.testing.assert_close(found(IMAGE), net(IMAGE), rtol=0, atol=0)


def test_spandrel_makes_the_same_of_their_weights() -> None:
    spandrel = spandrel_or_skip()
    nets = [
        compact_net(scale=4),
        drawn(RrdbNet(num_blocks=1)),
        drawn(RrdbNet(num_blocks=1, shuffle=2)),
    ]
    for net in nets:
        other = spandrel.ModelLoader().load_from_state_dict(dict(net.state_dict()))
        assert other.scale == net.facts.scale
        with torch.inference_mode():
            torch.testing.assert_close(net(IMAGE), other.model.eval()(IMAGE))


def test_other_networks_come_from_spandrel() -> None:
    spandrel_or_skip()
    from spandrel.architectures.SPAN import SPAN

    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
    found = network_of(dict(net.state_dict()))
    assert (found.facts.architecture, found.facts.scale) == ("SPAN", 2)
    assert found.facts.receptive_radius is None
    with torch.inference_mode():
        assert found(IMAGE).shape == (1, 3, 16, 12)


def test_without_spandrel_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(architectures, "import_module", missing)
    with pytest.raises(UnsupportedArchitecture, match=r"pip install 'tandem-server\[upscalers\]'"):
        network_of({"layers.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("key", [None, "params", "params_ema", "state_dict"])
@pytest.mark.parametrize("is_old_format", [False, True])
def test_files_that_torch_saves(key: str | None, is_old_format: bool, tmp_path: Path) -> None:
    net = compact_net()
    saved: Any = dict(net.state_dict())
    if key is not None:
        saved = {"params": {}, key: saved, "epoch": 3} if key == "params_ema" else {key: saved}
    path = tmp_path / "net.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=not is_old_format)
    torch.testing.assert_close(network_of(read_state_dict(path))(IMAGE), net(IMAGE))


def test_safetensors_files(tmp_path: Path) -> None:
    net = compact_net()
    save_file(dict(net.state_dict()), tmp_path / "net.safetensors")
    found = network_of(read_state_dict(tmp_path / "net.safetensors"))
    torch.testing.assert_close(found(IMAGE), net(IMAGE))


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/tandem-was-here"),))


def test_a_pickle_that_does_more_than_hold_tensors_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    for is_old_format in (False, True):
        torch.save({"a": Bomb()}, path, _use_new_zipfile_serialization=not is_old_format)
        with pytest.raises(CorruptFile, match="safetensors"):
            read_state_dict(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CorruptFile):
        read_state_dict(path)


def test_an_archive_of_a_later_version_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"body.0.weight": torch.zeros(1)}, path)
    entry = path.read_bytes().index(b"PK\1\2")
    for version in (64, 255):
        data = bytearray(path.read_bytes())
        data[entry + 6] = version  # needed to extract
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match="damaged"):
            read_state_dict(path)


def test_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\0" * (1 << 20))
    with pytest.raises(CorruptFile):
        read_state_dict(path)
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"body.0.weight": huge}, path)
    with pytest.raises(CorruptFile, match="plain tensor"):
        read_state_dict(path)
    for content in (b"", b"PK\x03\x04", b"\x80\x02", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ModelLoadError):
            read_state_dict(path)


def test_weights_that_do_not_fit_each_other_are_refused() -> None:
    for net in (compact_net(), rrdb_net()):
        weights = dict(net.state_dict())
        bias = list(weights)[-2].removesuffix("weight") + "bias"
        other = "body.1.weight" if isinstance(net, CompactNet) else "conv_hr.weight"
        far = "body.123456789.rdb1.conv1.weight"
        for given, error, words in (
            ({name: weights[name] for name in weights if name != bias}, CorruptFile, None),
            (weights | {other: torch.zeros(2, 2)}, ShapeMismatch, None),
            (weights | {"extra": torch.zeros(1)}, UnsupportedArchitecture, "extra"),
            (weights | {far: torch.zeros(1)}, CorruptFile, None),
        ):
            with pytest.raises(error, match=words):
                network_of(given)


def test_facts_count_weights_and_distances() -> None:
    assert RrdbNet().facts.receptive_radius == 349
    assert RrdbNet(num_blocks=6).facts.receptive_radius == 94
    assert CompactNet().facts.receptive_radius == 18
    conv = nn.Conv2d(64, 64, 3)
    assert CompactNet().facts.flops_per_pixel > 2 * 16 * conv.weight.numel()
