"""Whole families from folders: as they are, quantised on load, and with a GGUF transformer."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline, StableDiffusion3Pipeline
from gguf import GGMLQuantizationType

from engine.contract.draw import ImageTask
from engine.contract.settings import EngineConfig
from engine.diffusion.families.quantized import check_quantization, quantize
from engine.diffusion.families.quantized_layers import QUANTIZATIONS
from engine.diffusion.families.registry import load_family
from engine.diffusion.prompt.text import PromptText
from engine.errors import ModelLoadError
from engine.quantization.method_module import MethodModule
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.gguf_transformers import original_flux, original_sd3, write_gguf
from tests.helpers.diffusion.tiny_transformers import (
    flux_parts,
    predict,
    sd3_parts,
    t5_encoder,
)

CPU = torch.device("cpu")


def save_flux(folder: Path, kind: Any = FluxPipeline) -> None:
    kind(**vars(flux_parts(11, {"guidance_embeds": True}))).save_pretrained(folder)


def save_sd3(folder: Path, *, with_t5: bool = True) -> None:
    StableDiffusion3Pipeline(**vars(sd3_parts(11, with_t5=with_t5))).save_pretrained(folder)


def load(folder: Path, quantization: str = "none", dtype: torch.dtype = torch.float32) -> Any:
    checkpoint = Checkpoint("diffusers", folder, "tiny")
    return load_family(checkpoint, dtype=dtype, device=CPU, quantization=quantization)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("save", [save_flux, save_sd3])
def test_a_folder_is_loaded_and_quantised(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    plain = predict(load(tmp_path))
    assert plain.dtype == torch.float32
    for quantization in QUANTIZATIONS[1:]:
        found = distance(predict(load(tmp_path, quantization)), plain)
        assert 1e-5 < found < 0.5, quantization
        mixed = predict(load(tmp_path, quantization, dtype=torch.bfloat16))
        assert distance(mixed, plain) < 0.5, quantization
    half = predict(load(tmp_path, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert 1e-5 < distance(half, plain) < 0.1


def test_loaded_equals_built_from_parts(tmp_path: Path) -> None:
    save_sd3(tmp_path, with_t5=False)
    family = load(tmp_path)
    assert family.facts.architecture == "stable-diffusion-3"
    states = family.encode_prompts([PromptText(text="a cat")])[0].states
    pipeline = StableDiffusion3Pipeline(**vars(sd3_parts(11, with_t5=False)))
    with torch.no_grad():
        theirs = pipeline.encode_prompt("a cat", None, None, do_classifier_free_guidance=False)[0]
    assert (states - theirs).abs().max() < 1e-5


def test_kontext_is_told_by_its_class(tmp_path: Path) -> None:
    save_flux(tmp_path / "kontext", FluxKontextPipeline)
    save_flux(tmp_path / "dev")
    assert ImageTask.EDIT in load(tmp_path / "kontext").facts.tasks
    assert ImageTask.EDIT not in load(tmp_path / "dev").facts.tasks


@pytest.mark.parametrize(("save", "names"), [(save_flux, original_flux), (save_sd3, original_sd3)])
def test_a_gguf_file_stands_in_for_the_transformer(
    save: Callable[[Path], None], names: Callable[..., Any], tmp_path: Path
) -> None:
    save(tmp_path)
    family = load(tmp_path)
    plain = predict(family)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = names(family._transformer.state_dict())
    write_gguf(weights.with_name("q8.gguf"), state, GGMLQuantizationType.Q8_0)
    weights.unlink()
    assert 1e-6 < distance(predict(load(tmp_path)), plain) < 0.05
    assert distance(predict(load(tmp_path, dtype=torch.bfloat16)), plain) < 0.1
    with pytest.raises(ModelLoadError, match="quantised already"):
        load(tmp_path, "bnb-int8")


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
    family = load(tmp_path, "bnb-int8")
    quantised = {
        type(module).__name__
        for module in (family._transformer, family._t5._encoder, family._clip._encoder)
        if any(isinstance(layer, MethodModule) for layer in module.modules())
    }
    assert quantised == {"FluxTransformer2DModel", "T5EncoderModel"}
    (setting,) = [f for f in fields(EngineConfig) if f.name == "image_quantization"]
    assert "denoiser and T5 encoder" in setting.metadata["help"]


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
    config_file = tmp_path / "transformer" / "config.json"
    config = json.loads(config_file.read_text())
    config["quantization_config"] = {"quant_method": "quanto"}
    config_file.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="GPU"):
        load(tmp_path)


def test_families_import_no_diffusers() -> None:
    code = (
        "import sys, engine.diffusion.families, engine.diffusion.families.registry;"
        "assert 'diffusers' not in sys.modules and 'bitsandbytes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
