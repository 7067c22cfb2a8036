"""GGUF models with an mmproj file, beside the folders that they were made of."""

import random
import shutil
from dataclasses import replace

import pytest
import torch

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.registry import create_model
from engine.planning.report import Target
from engine.planning.text import plan
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.mmproj import with_mmproj
from engine.weights.source import resolve_source
from tests.helpers.models.checkpoints import in_folder, in_gguf, logits
from tests.helpers.models.gguf_projectors import PROJECTORS, write_both
from tests.helpers.models.tiny_wrappers import encoded, make_wrapper

# Numbers that the files imply: the window of Qwen2.5-VL's tower, and that Gemma 3's scores are
# scaled by the size of a head.
VISION = {"window_size": 112}
TEXT = {"rms_norm_eps": 2.0**-17, "query_pre_attn_scalar": 16}


@pytest.fixture(params=PROJECTORS)
def kind(request):
    return str(request.param)


@pytest.fixture
def folder(kind, tmp_path):
    return make_wrapper(tmp_path / "model", kind, vision=VISION, text=TEXT)


def load(checkpoint):
    config = load_model_config(checkpoint)
    model = create_model(config, dtype=torch.float32)
    assert model.load_weights(iter_weights(checkpoint, config)) == []
    return config, model


def test_both_files_give_the_states_and_logits_of_the_folder(kind, folder):
    path, _ = write_both(folder, kind)
    both = in_folder(folder), with_mmproj(in_gguf(path), None)
    (theirs, expected), (ours, found) = map(load, both)
    assert ours.pictures == theirs.pictures
    assert (ours.architecture, ours.rope_axes) == (theirs.architecture, theirs.rope_axes)
    side = theirs.pictures.side
    shape = (side, side) if theirs.pictures.pixel_bounds is None else (3 * side, 4 * side)
    pixels = torch.randint(0, 256, (2, *shape, 3), dtype=torch.uint8)
    states = [encoded(model.picture_encoder, pixels) for model in (expected, found)]
    assert (states[0] - states[1]).abs().max() < 1e-5 * states[0].abs().max()
    text = [random.randrange(256) for _ in range(40)]
    one, other = (logits(checkpoint, text) for checkpoint in both)
    assert (one - other).abs().max() < 2e-5 * one.abs().max()


def test_a_file_of_another_model(tmp_path):
    paths = {
        kind: write_both(make_wrapper(tmp_path / kind, kind), kind)
        for kind in ("smolvlm", "qwen3_vl", "qwen2_vl")
    }
    model = in_gguf(paths["smolvlm"][0])
    other = str(paths["qwen3_vl"][1])
    with pytest.raises(UnsupportedArchitecture, match=r"^mmproj .*'qwen3vl_merger'.*'llama'") as no:
        with_mmproj(model, other)
    assert no.value.param == "mmproj"
    with pytest.raises(ModelLoadError, match=r"smaller\.gguf belongs to another model"):
        wide = make_wrapper(tmp_path / "wide", "smolvlm", text={"hidden_size": 96})
        with_mmproj(
            in_gguf(write_both(wide, "smolvlm")[0]),
            str(shutil.copy(paths["smolvlm"][1], tmp_path / "smaller.gguf")),
        )
    with pytest.raises(ModelLoadError, match="is not an mmproj file"):
        with_mmproj(model, str(paths["smolvlm"][0]))
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        with_mmproj(in_folder(tmp_path / "smolvlm"), str(paths["smolvlm"][1]))
    # One that was not named does not keep the text model from being served.
    shutil.copy(other, paths["smolvlm"][0].parent / "mmproj.gguf")
    assert with_mmproj(model, None) == model


def test_a_folder_with_both_files(tmp_path):
    path, mmproj = write_both(make_wrapper(tmp_path / "model", "smolvlm"), "smolvlm")
    only = tmp_path / "only"
    only.mkdir()
    for one in (path, mmproj):
        shutil.copy(one, only)
    found = resolve_source(str(only), cache_dir=tmp_path, on_progress=print)
    assert found.path == only / path.name
    assert with_mmproj(found, None) == replace(found, mmproj=only / mmproj.name)
    with pytest.raises(UnsupportedArchitecture, match="holds the encoder for a model's pictures"):
        load_model_config(in_gguf(mmproj))


def test_plans_count_the_encoder(tmp_path):
    path, mmproj = write_both(make_wrapper(tmp_path / "model", "smolvlm"), "smolvlm")
    machine = MachineFacts(device="cpu", num_cores=2, free_memory_bytes=1 << 34)
    wanted = Target(machine=machine, process_bytes=0, device="it", context=100)
    intent = EngineConfig(dtype="float32", quantization="none")
    beside = in_gguf(path)
    counted = [
        plan(beside, intent, wanted),
        plan(beside, replace(intent, mmproj=str(mmproj)), wanted),
    ]
    mmproj.rename(tmp_path / "elsewhere.gguf")
    counted.append(plan(beside, intent, wanted))
    both, named, alone = (report.rows[0].weight_bytes for report in counted)
    assert both == named > alone
