"""Diffusers folders: what is loaded, and what is said about those that cannot be."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer

from engine.contract.draw import ImageTask
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.registry import pipeline_name
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from engine.diffusion.families.stable_diffusion_xl import StableDiffusionXLFamily
from engine.diffusion.prompt.text import PromptText
from engine.errors import (
    CorruptFile,
    MissingWeight,
    ModelLoadError,
    ShapeMismatch,
    UnsupportedArchitecture,
)
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.denoise_loop import Job, draw
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_pipelines import CPU, Parts, tiny_parts, tiny_unet
from tests.helpers.json_files import edit_json

SHIPPED = Path(__file__).parents[4] / "engine/data/shapes"


def save(parts: Parts, folder: Path, **index: object) -> Path:
    """Write the files that the pipeline's `save_pretrained` would write."""
    components = {
        "unet": ("diffusers", parts.unet),
        "vae": ("diffusers", parts.vae),
        "scheduler": ("diffusers", parts.scheduler),
        "text_encoder": ("transformers", parts.text_encoder),
        "tokenizer": ("transformers", parts.tokenizer),
        "text_encoder_2": ("transformers", parts.text_encoder_2),
        "tokenizer_2": ("transformers", parts.tokenizer_2),
    } | {name: ("diffusers", unet) for name, unet in parts.extra_unets.items()}
    name = "StableDiffusionXLPipeline" if parts.is_xl else "StableDiffusionPipeline"
    listing: dict[str, object] = {"_class_name": name, "safety_checker": [None, None]}
    for key, (library, component) in components.items():
        if component is not None:
            component.save_pretrained(folder / key)
            listing[key] = [library, type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(listing | index))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, Path]:
    torch.set_num_threads(1)
    parts = tiny_parts(7)
    parts.extra_unets = {"unet_edit": tiny_unet(8)}
    defaults = {"num_inference_steps": 11, "guidance_scale": 4.0, "size": 32}
    defaults |= {"edit_guidance_scale": 2.5}
    return parts, save(parts, tmp_path_factory.mktemp("models") / "sd", _defaults=defaults)


@pytest.fixture
def folder(saved: tuple[Parts, Path], tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(saved[1], tmp_path / "damaged"))


def job() -> Job:
    return Job("a cat", torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2)))


def test_a_folder(saved: tuple[Parts, Path]) -> None:
    parts, path = saved
    family = load_folder(path)
    assert type(family) is StableDiffusionFamily
    assert set(family.facts.tasks) == set(ImageTask) - {ImageTask.UPSCALE}
    denoising = family.facts.denoising
    assert (denoising.default_steps, denoising.default_guidance_scale) == (11, 4.0)
    assert denoising.default_edit_guidance_scale == 2.5
    torch.testing.assert_close(draw(family, job()), draw(parts.family(), job()))
    num_weights = sum(
        weight.numel()
        for module in (parts.unet, parts.extra_unets["unet_edit"], parts.vae, parts.text_encoder)
        for weight in module.parameters()
    )
    folder = Checkpoint("diffusers", path, "m")
    assert weight_bytes(folder, dtype=torch.bfloat16, device="cuda") == 2 * num_weights


def test_a_folder_that_says_which_words_it_knows(folder: Path) -> None:
    prompts = [PromptText(text="a cat"), PromptText(text="a dog")]
    known, unknown = load_folder(folder).encode_prompts(prompts)
    assert not known.warnings and not unknown.warnings
    edit_json(folder / "model_index.json", {"_vocabulary": ["a", "cat"]})
    family = load_folder(folder)
    known, unknown = family.encode_prompts(prompts)
    assert not known.warnings
    (warning,) = unknown.warnings
    assert '"dog"' in warning and "cat" not in warning


def test_the_built_in_model_names_words_that_it_does_not_know() -> None:
    family = load_folder(SHIPPED)
    texts = ["A large red circle left of a blue star.", "a red dog on a sofa"]
    known, unknown = family.encode_prompts([PromptText(text=text) for text in texts])
    assert not known.warnings
    assert unknown.warnings[0].endswith(': "dog", "sofa"')


def test_an_xl_folder(tmp_path: Path) -> None:
    parts = tiny_parts(8, xl=True)
    family = load_folder(save(parts, tmp_path, force_zeros_for_empty_prompt=False))
    assert isinstance(family, StableDiffusionXLFamily)
    expected = parts.family(zeros_for_empty=False)
    # Equal but for rounding, which the steps amplify.
    torch.testing.assert_close(draw(family, job()), draw(expected, job()), atol=1e-4, rtol=0)


def test_half_precision_weights_of_another_file_name(saved, folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {name: t.half() for name, t in load_file(weights).items()}
    save_file(halves, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    exact = draw(load_folder(saved[1]), job())
    # Both are there: full precision for fp32.
    assert torch.equal(draw(load_folder(folder), job()), exact)
    weights.unlink()
    rounded = draw(load_folder(folder), job())
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(saved: tuple[Parts, Path], dtype: torch.dtype) -> None:
    drawn = draw(load_folder(saved[1], dtype=dtype), job())
    torch.testing.assert_close(drawn, draw(load_folder(saved[1]), job()), atol=0.3, rtol=0)


def test_quantisation_reaches_the_unet(saved: tuple[Parts, Path]) -> None:
    with pytest.raises(ModelLoadError, match="'zip' is unknown"):
        load_folder(saved[1], "zip")
    family = load_folder(saved[1], "bnb-nf4")
    rounded, exact = draw(family, job()), draw(load_folder(saved[1]), job())
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.3, rtol=0)


def test_damage_is_named(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    tensors = {name: t.clone() for name, t in load_file(weights).items()}
    short = {name: t for name, t in tensors.items() if name != "conv_in.bias"}
    other = tensors | {"conv_in.bias": torch.zeros(3)}
    cases = [
        (lambda: weights.write_bytes(content[:-5]), CorruptFile, "fetch it again"),
        (lambda: weights.write_bytes(b"x"), CorruptFile, "damaged"),
        (lambda: save_file(short, weights), MissingWeight, r"unet lacks 1 .*conv_in\.bias"),
        (lambda: save_file(other, weights), ShapeMismatch, "unet"),
        (weights.unlink, MissingWeight, "unet has no complete set"),
        (weights.with_suffix(".bin").touch, ModelLoadError, "only as pickles"),
        ((folder / "vae" / "config.json").unlink, ModelLoadError, "config.json cannot be read"),
    ]
    for damage, error, words in cases:
        if error is ModelLoadError and words.startswith("config"):
            weights.write_bytes(content)
        damage()
        with pytest.raises(error, match=words) as caught:
            load_folder(folder)
        assert str(folder) not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"_class_name": "StableDiffusionPipelin"}, UnsupportedArchitecture, "StableDiffusionPipe"),
        ({"_class_name": "Zzz"}, UnsupportedArchitecture, "supported are .*FluxPipeline"),
        ({"_class_name": None}, CorruptFile, "no _class_name"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, UnsupportedArchitecture, "AutoencoderKL is"),
        ({"_defaults": [1]}, CorruptFile, "_defaults"),
        ({"_defaults": {"size": "64"}}, CorruptFile, "_defaults"),
        ({"_vocabulary": "a cat"}, CorruptFile, "_vocabulary"),
        ({"_vocabulary": ["a", 1]}, CorruptFile, "_vocabulary"),
        ({"unet": [None, None]}, ModelLoadError, "names no unet"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, UnsupportedArchitecture, "CLIPTokenizer"),
        ({"unet_edit": ["diffusers", "FluxTransformer2DModel"]}, UnsupportedArchitecture, "unet_e"),
    ],
)
def test_indexes_that_cannot_be_served(change, error, words, folder):
    edit_json(folder / "model_index.json", change)
    with pytest.raises(error, match=words):
        load_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_broken_indexes(content: str, folder: Path) -> None:
    (folder / "model_index.json").write_text(content)
    with pytest.raises(CorruptFile, match=r"model_index\.json"):
        load_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
    ],
)
def test_pipes_and_deep_json_in_a_files_place(name: str, folder: Path) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(CorruptFile, match=f"{path.name} is a pipe"):
        load_folder(folder)
    if path.suffix == ".json":
        path.unlink()
        path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
        with pytest.raises(CorruptFile, match=f"{path.name} is nested"):
            load_folder(folder)


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("unet", {"layers_per_block": 20_000}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 20_000}),
        ("vae", {"layers_per_block": 20_000}),
        ("text_encoder", {"num_hidden_layers": 20_000}),
    ],
)
def test_more_layers_than_can_be_built(component, change, folder):
    edit_json(folder / component / "config.json", change)
    started_s = time.thread_time()
    with pytest.raises(ModelLoadError, match=f"{component} has {next(iter(change))} above 1024"):
        load_folder(folder)
    assert time.thread_time() - started_s < 20


def test_language_models_are_not_drawn_with(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="is not an image model"):
        pipeline_name(Checkpoint("gguf", tmp_path / "x.gguf", "x"))


def test_editing_unets_that_do_not_edit(saved: tuple[Parts, Path], tmp_path: Path) -> None:
    parts = copy.copy(saved[0])
    parts.extra_unets = {"unet_edit": parts.unet}
    with pytest.raises(UnsupportedArchitecture, match="unet_edit has 4"):
        load_folder(save(parts, tmp_path))


def test_importing_the_registry_imports_no_library_of_models() -> None:
    code = (
        "import sys, engine.diffusion.families.registry; "
        "sys.exit(bool({'bitsandbytes', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        # diffusers has stand-ins for classes whose package is missing. They fail in use.
        ("DPMSolverSDEScheduler", "needs the package torchsde"),
        ("NoScheduler", "NoScheduler' is not one of diffusers"),
        ("__version__", "__version__' is not one of diffusers"),
        ("StableDiffusionPipeline", "StableDiffusionPipeline' is not one of diffusers"),
    ],
)
def test_a_noise_schedule_that_cannot_be_made_is_refused_at_load(folder, name, words):
    edit_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": name})
    with pytest.raises(UnsupportedArchitecture, match=words):
        load_folder(folder)


def test_a_tokenizer_that_needs_another_package_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_2").mkdir()
    (tmp_path / "tokenizer_2" / "spiece.model").touch()
    listing = {"tokenizer_2": ["transformers", "T5TokenizerFast"]}
    (tmp_path / "model_index.json").write_text(json.dumps(listing))
    components = ComponentFolder(tmp_path, LoadOptions(dtype=torch.float32, device=CPU))
    with pytest.raises(ModelLoadError, match=r"only a spiece\.model.*tokenizer\.json"):
        components.tokenizer("tokenizer_2", T5Tokenizer)
