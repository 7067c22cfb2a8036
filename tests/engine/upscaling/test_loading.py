"""From files to an engine that enlarges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.contract.operations import DRAW, ENLARGE
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import ModelLoadError, ModelNotFound
from engine.upscaling.loading import load_engine
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint, resolve_source
from tests.helpers.host import Host
from tests.helpers.upscaling.ncnn_files import write_compact
from tests.helpers.upscaling.upscaling_nets import (
    compact_net,
    noise,
    result_of,
    run,
    untiled,
    upscale_request,
)

CONFIG = EngineConfig(device="cpu", num_threads=1, image_dtype="float32")


def resolved(path: Path) -> Checkpoint:
    return resolve_source(str(path), cache_dir=path.parent, on_progress=lambda *_: None)


@pytest.mark.parametrize("layout", ["ncnn", "ncnn_folder", "pth", "safetensors"])
def test_a_model_from_each_layout(layout: str, tmp_path: Path) -> None:
    net = compact_net()
    for module in net.body:
        module.weight.data = module.weight.data.half().float()
    if layout.startswith("ncnn"):
        path = write_compact(net, tmp_path)
        path = tmp_path if layout == "ncnn_folder" else path
    elif layout == "pth":
        path = tmp_path / "net.pth"
        torch.save({"params": net.state_dict()}, path)
    else:
        path = tmp_path / "net.safetensors"
        save_file(dict(net.state_dict()), path)
    checkpoint = resolved(path)
    assert kind_of_checkpoint(checkpoint).main is ENLARGE
    host = Host()
    engine, info = load_engine(checkpoint, "m", CONFIG, host)
    assert (info.architecture, info.scale, info.receptive_radius) == ("Compact", 2, 4)
    assert info.exact_by_default and info.default_overlap == 8
    assert [phase for phase, *_ in host.reports] == [Phase.WARMING_UP]
    assert engine.stats() == ENLARGE.stats()
    image = noise(70, 33)
    request = upscale_request(image, net, tile=40, overlap=8, exact=True)
    found = result_of(request, run(engine, request)[request.request_id])
    assert np.abs(found.astype(int) - untiled(image, net)).max() <= 1


def test_image_models_in_one_file_stay_image_models(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"first_stage_model.decoder.conv_in.weight": torch.zeros(1)}, path)
    assert kind_of_checkpoint(resolved(path)).main is DRAW
    assert kind_of_checkpoint(resolved(path), "upscaler").main is ENLARGE


def test_damaged_weights_are_found_by_the_trial(tmp_path: Path) -> None:
    net = compact_net()
    net.body[0].weight.data[0] = torch.nan
    save_file(dict(net.state_dict()), tmp_path / "net.safetensors")
    with pytest.raises(ModelLoadError, match="trial"):
        load_engine(resolved(tmp_path / "net.safetensors"), "m", CONFIG, Host())


def test_a_graph_without_its_weights(tmp_path: Path) -> None:
    path = write_compact(compact_net(), tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelNotFound, match=r"model\.bin"):
        resolved(path)
