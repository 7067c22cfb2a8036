"""Whole families from folders: as they are, quantised on load, and with a GGUF transformer."""

import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline
from gguf import GGMLQuantizationType

from engine.contract.draw import ImageTask
from engine.contract.settings import EngineConfig
from engine.diffusion.families.quantized import check_quantization, quantize
from engine.diffusion.families.quantized_layers import QUANTIZATIONS
from engine.diffusion.prompt.text import PromptText
from engine.errors import ModelLoadError
from engine.quantization.method_module import MethodModule
from tests.helpers.diffusion.gguf_transformers import (
    original_flux,
    original_flux2,
    original_sd3,
    write_gguf,
)
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_flux2 import flux2_parts
from tests.helpers.diffusion.tiny_transformers import (
    flux_parts,
    pipeline_of,
    predict,
    sd3_parts,
    t5_encoder,
)
from tests.helpers.json_files import edit_json

CPU = torch.device("cpu")


def save_flux(folder: Path, kind: Any = None) -> None:
    pipeline_of(flux_parts(11, {"guidance_embeds": True}), kind).save_pretrained(folder)


def save_flux2(folder: Path) -> None:
    flux2_parts(11).pipeline().save_pretrained(folder)


def save_sd3(folder: Path, *, with_t5: bool = True) -> None:
    pipeline_of(sd3_parts(11, with_t5=with_t5)).save_pretrained(folder)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("save", [save_flux, save_flux2, save_sd3])
def test_a_folder_is_loaded_and_quantised(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    plain = predict(load_folder(tmp_path))
    assert plain.dtype == torch.float32
    for quantization in random.sample(QUANTIZATIONS[1:], 2):  # layers have tests of their own
        found = distance(predict(load_folder(tmp_path, quantization)), plain)
        assert 1e-5 < found < 0.5, quantization
        mixed = predict(load_folder(tmp_path, quantization, dtype=torch.bfloat16))
        assert distance(mixed, plain) < 0.5, quantization
    half = predict(load_folder(tmp_path, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert 1e-5 < distance(half, plain) < 0.1


def test_loaded_equals_built_from_parts(tmp_path: Path) -> None:
    save_sd3(tmp_path, with_t5=False)
    family = load_folder(tmp_path)
    assert family.facts.architecture == "stable-diffusion-3"
    states = family.encode_prompts([PromptText(text="a cat")])[0].states
    pipeline = pipeline_of(sd3_parts(11, with_t5=False))
    with torch.no_grad():
        theirs = pipeline.encode_prompt("a cat", None, None, do_classifier_free_guidance=False)[0]
    assert (states - theirs).abs().max() < 1e-5


def test_kontext_is_told_by_its_class(tmp_path: Path) -> None:
    save_flux(tmp_path / "kontext", FluxKontextPipeline)
    save_flux(tmp_path / "dev")
    assert ImageTask.EDIT in load_folder(tmp_path / "kontext").facts.tasks
    assert ImageTask.EDIT not in load_folder(tmp_path / "dev").facts.tasks


@pytest.mark.parametrize(
    ("save", "names"),
    [(save_flux, original_flux), (save_flux2, original_flux2), (save_sd3, original_sd3)],
)
def test_a_gguf_file_stands_in_for_the_transformer(
    save: Callable[[Path], None], names: Callable[..., Any], tmp_path: Path
) -> None:
    save(tmp_path)
    family = load_folder(tmp_path)
    plain = predict(family)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = names(family._transformer.state_dict())
    write_gguf(weights.with_name("q8.gguf"), state, GGMLQuantizationType.Q8_0)
    weights.unlink()
    assert 1e-6 < distance(predict(load_folder(tmp_path)), plain) < 0.05
    assert distance(predict(load_folder(tmp_path, dtype=torch.bfloat16)), plain) < 0.1
    with pytest.raises(ModelLoadError, match="quantised already"):
        load_folder(tmp_path, "bnb-int8")


def test_only_layers_of_blocks_are_quantised() -> None:
    model = flux_parts(1).transformer
    size = sum(p.nbytes for p in model.parameters())
    count = quantize(model, "bnb-nf4", dtype=torch.float32, device=CPU)
    # A block has 14 linear layers, a single one 6.
    assert count == 14 + 2 * 6
    assert type(model.x_embedder) is torch.nn.Linear
    assert type(model.proj_out) is torch.nn.Linear
    assert sum(p.nbytes for p in model.parameters()) < size / 2
    with pytest.raises(ModelLoadError, match="no layers"):
        quantize(model, "bnb-nf4", dtype=torch.float32, device=CPU)


def test_t5_keeps_the_layer_whose_dtype_it_reads() -> None:
    model = t5_encoder()
    quantize(model, "bnb-int8", dtype=torch.float32, device=CPU)
    feed_forward = model.encoder.block[0].layer[1].DenseReluDense
    assert type(feed_forward.wo) is torch.nn.Linear
    assert isinstance(feed_forward.wi_0, MethodModule)


def test_the_setting_says_what_is_quantised(tmp_path: Path) -> None:
    save_flux(tmp_path)
    family = load_folder(tmp_path, "bnb-int8")
    quantised = {
        type(module).__name__
        for module in (family._transformer, family._t5.model, family._clip._encoder)
        if any(isinstance(layer, MethodModule) for layer in module.modules())
    }
    assert quantised == {"FluxTransformer2DModel", "T5EncoderModel"}
    (setting,) = [f for f in fields(EngineConfig) if f.name == "image_quantization"]
    assert "denoiser and large text encoder" in setting.metadata["help"]


def test_none_changes_nothing() -> None:
    model = flux_parts(1).transformer
    assert quantize(model, "none", dtype=torch.float32, device=CPU) == 0
    assert [check_quantization(name) for name in QUANTIZATIONS] == list(QUANTIZATIONS)


@pytest.mark.parametrize("name", ["", "nf4", "BNB-NF4"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="use one of none, int8-weights, int4, bnb-nf4"):
        check_quantization(name)


def test_weights_saved_in_other_formats_need_a_gpu(tmp_path: Path) -> None:
    """diffusers refuses its own formats on a CPU, and so does the family, in its own words."""
    if torch.cuda.is_available():
        pytest.skip("diffusers loads them on a GPU")
    save_flux(tmp_path)
    config = {"quantization_config": {"quant_method": "modelopt"}}
    edit_json(tmp_path / "transformer" / "config.json", config)
    with pytest.raises(ModelLoadError, match="GPU"):
        load_folder(tmp_path)
