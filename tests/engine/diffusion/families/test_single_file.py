"""Single files: tiny ones against the components they were made of, real shapes without memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from engine.diffusion.families import single_file
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.registry import load_family, pipeline_name
from engine.diffusion.families.single_file import DATA, Layout, assemble, clip_tokenizer, layout_of
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from engine.diffusion.families.stable_diffusion_xl import StableDiffusionXLFamily
from engine.errors import CorruptFile, MissingWeight, ShapeMismatch, UnsupportedArchitecture
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.denoise_loop import Job, draw
from tests.helpers.diffusion.original_names import (
    as_halves,
    clip_tensors,
    open_clip_tensors,
    unet_tensors,
    vae_tensors,
)
from tests.helpers.diffusion.tiny_pipelines import CPU

META = torch.device("meta")
KINDS = ("sd1", "sd2", "sdxl")
_SHRUNK: dict[str, Any] = {
    "norm_num_groups": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "sample_size": 16,
}


def config_of(kind: str, name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / kind / name / "config.json").read_text()))


def shrink(kind: str, name: str) -> dict[str, Any]:
    """The shipped configuration with every width made small."""
    config = config_of(kind, name)
    config |= {key: value for key, value in _SHRUNK.items() if key in config}
    if "block_out_channels" in config:
        config["block_out_channels"] = [8, 8, 16, 16][: len(config["block_out_channels"])]
    if name == "unet":
        config["attention_head_dim"] = 2
        config["cross_attention_dim"] = 32 if kind == "sdxl" else 16
    if kind == "sdxl" and name == "unet":
        config["transformer_layers_per_block"] = [1, 2, 3]
        config["addition_time_embed_dim"] = 4
        config["projection_class_embeddings_input_dim"] = 16 + 6 * 4
    if "projection_dim" in config:
        config["projection_dim"] = 16
    return config


def encoder_of(config: dict[str, Any]) -> CLIPTextModel | CLIPTextModelWithProjection:
    with_projection = config["architectures"] == ["CLIPTextModelWithProjection"]
    model = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    return model(CLIPTextConfig(**config)).eval()


def tensors_of(kind: str, unet: Any, vae: Any, encoders: list[Any]) -> dict[str, torch.Tensor]:
    tensors = unet_tensors(unet) | vae_tensors(vae)
    if kind == "sd1":
        return tensors | clip_tensors(encoders[0], "cond_stage_model.transformer.")
    if kind == "sd2":
        return tensors | open_clip_tensors(encoders[0], "cond_stage_model.model.")
    return (
        tensors
        | clip_tensors(encoders[0], "conditioner.embedders.0.transformer.")
        | open_clip_tensors(encoders[1], "conditioner.embedders.1.model.")
    )


def names_of_encoders(kind: str) -> list[str]:
    return ["text_encoder", "text_encoder_2"] if kind == "sdxl" else ["text_encoder"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The shipped configurations, shrunk."""
    root = tmp_path / "data"
    for kind in KINDS:
        for name in ("unet", "vae", *names_of_encoders(kind)):
            (root / kind / name).mkdir(parents=True)
            (root / kind / name / "config.json").write_text(json.dumps(shrink(kind, name)))
        (root / kind / "scheduler").mkdir()
        shipped = DATA / kind / "scheduler" / "scheduler_config.json"
        (root / kind / "scheduler" / shipped.name).write_text(shipped.read_text())
    (root / "clip_merges.txt.gz").write_bytes((DATA / "clip_merges.txt.gz").read_bytes())
    return root


@pytest.mark.parametrize(("kind", "in_channels"), [("sd1", 4), ("sd1", 9), ("sd2", 4), ("sdxl", 4)])
def test_a_file_draws_like_its_components(kind, in_channels, data, tmp_path, monkeypatch):
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(shrink(kind, "unet") | {"in_channels": in_channels})
    vae = AutoencoderKL.from_config(shrink(kind, "vae"))
    encoders = [encoder_of(shrink(kind, name)) for name in names_of_encoders(kind)]
    path = tmp_path / "model.safetensors"
    save_file(as_halves(tensors_of(kind, unet, vae, encoders)), path)
    monkeypatch.setattr(single_file.load, "__kwdefaults__", {"data": data})
    loaded = load_family(Checkpoint("single_file", path, "m"), dtype=torch.float32, device=CPU)
    expected_class = StableDiffusionXLFamily if kind == "sdxl" else StableDiffusionFamily
    assert type(loaded) is expected_class
    for module in (unet, vae, *encoders):
        module.half().float().requires_grad_(False)
    tokenizers = [clip_tokenizer(data, "<|endoftext|>"), clip_tokenizer(data, "!")]
    if kind == "sd2":
        tokenizers.reverse()
    scheduler_config = json.loads((data / kind / "scheduler/scheduler_config.json").read_text())
    if in_channels == 9:
        scheduler_config["prediction_type"] = "epsilon"
    expected = expected_class(
        unets={"unet": unet},
        autoencoder=Autoencoder(vae.eval(), dtype=torch.float32, device=CPU),
        encoders=[
            expected_class.prompt_encoder(tokenizer, encoder)
            for tokenizer, encoder in zip(tokenizers, encoders, strict=False)
        ],
        scheduler_config=scheduler_config,
        device=CPU,
    )
    task = loaded.facts.tasks[0]
    assert loaded.facts == expected.facts
    generator = torch.Generator().manual_seed(1)
    job = Job(
        "a photo of a cat",
        torch.randn((1, 4, 8, 8), generator=generator),
        negative="dog",
        task=task,
        num_steps=2,
        image_latents=torch.randn((1, 5, 8, 8), generator=generator) if in_channels == 9 else None,
    )
    torch.testing.assert_close(draw(loaded, job), draw(expected, job))
    latents = torch.randn((1, 4, 2, 2))
    torch.testing.assert_close(loaded.decode(latents), expected.decode(latents))
    image = torch.rand((1, 3, 16, 16))
    torch.testing.assert_close(
        *(each.encode_image(image, torch.Generator().manual_seed(1)) for each in (loaded, expected))
    )


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("sd1", (859_520_964, 123_060_480)), ("sd2", (865_910_724, 340_387_840)), ("sdxl", None)],
)
def test_published_models_fit(kind: str, weights: tuple[int, int] | None) -> None:
    """Names and shapes of the real models, without their numbers."""
    with META:
        unet = UNet2DConditionModel.from_config(config_of(kind, "unet"))
        vae = AutoencoderKL.from_config(config_of(kind, "vae"))
        encoders = [encoder_of(config_of(kind, name)) for name in names_of_encoders(kind)]
    tensors = tensors_of(kind, unet, vae, encoders)
    options = LoadOptions(dtype=torch.float16, device=META)
    layout = Layout(kind, "", 4, False)
    parts = assemble(layout, tensors, options)
    counts = [
        sum(weight.numel() for weight in module.parameters())
        for module in (parts.unet, *(encoder for _, encoder in parts.encoders))
    ]
    assert counts == list(weights or (2_567_463_684, 123_060_480, 694_659_840))
    stem = tensors.pop("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")
    with pytest.raises(MissingWeight, match=r"unet lacks 1 .*resnets\.0\.conv1\.weight"):
        assemble(layout, tensors, options)
    tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"] = stem[:-1]
    with pytest.raises(ShapeMismatch, match=r"resnets\.0\.conv1\.weight of shape \[319"):
        assemble(layout, tensors, options)


def test_the_vocabulary_is_clips() -> None:
    tokenizer = clip_tokenizer(DATA, "!")
    assert len(tokenizer) == 49408
    assert tokenizer.pad_token_id == 0
    # As published with CLIP.
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello  World")["input_ids"] == [49406, 3306, 1002, 49407]


def header(tmp_path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, metadata)
    return path


STEM = "model.diffusion_model.input_blocks.0.0.weight"
CLIP = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
OPEN_CLIP = "cond_stage_model.model.ln_final.bias"
XL_CLIP = "conditioner.embedders.1.model.ln_final.bias"
PREDICTS = "modelspec.predict_key"
EMPTY = ("v_pred", "ztsnr")


@pytest.mark.parametrize(
    ("channels", "names", "metadata", "pipeline", "is_v"),
    [
        (4, [CLIP], {}, "StableDiffusionPipeline", False),
        (9, [CLIP], {}, "StableDiffusionInpaintPipeline", False),
        (8, [CLIP], {}, "StableDiffusionInstructPix2PixPipeline", False),
        (4, [OPEN_CLIP], {}, "StableDiffusionPipeline", True),
        (9, [OPEN_CLIP], {}, "StableDiffusionInpaintPipeline", False),
        (4, [OPEN_CLIP], {PREDICTS: "epsilon"}, "StableDiffusionPipeline", False),
        (4, [XL_CLIP], {}, "StableDiffusionXLPipeline", False),
        (9, [XL_CLIP], {}, "StableDiffusionXLInpaintPipeline", False),
        (4, [XL_CLIP], {PREDICTS: "v"}, "StableDiffusionXLPipeline", True),
        (4, [XL_CLIP, *EMPTY], {}, "StableDiffusionXLPipeline", True),
    ],
)
def test_layouts(channels, names, metadata, pipeline, is_v, tmp_path):
    shapes = {STEM: (2, channels, 1, 1)}
    shapes |= {name: (0,) if name in EMPTY else (1,) for name in names}
    path = header(tmp_path, shapes, **metadata)
    assert (layout_of(path).pipeline, layout_of(path).is_v) == (pipeline, is_v)
    checkpoint = Checkpoint("single_file", path, "m")
    assert pipeline_name(checkpoint) == pipeline
    assert weight_bytes(checkpoint, dtype=torch.bfloat16) == 2 * sum(
        torch.Size(shape).numel() for shape in shapes.values()
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_x.lora_down.weight"], "this one is a LoRA"),
        (["unet.x.lora_A.weight"], "this one is a LoRA"),
        ([STEM], "UNet without text encoder"),
        ([STEM, "conditioner.embedders.0.model.ln_final.bias"], "refiner"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["down_blocks.0.resnets.0.conv1.weight"], "UNet without"),
        (["model.layers.0.mlp.up_proj.weight"], "other tensor names"),
    ],
)
def test_other_files(names: list[str], words: str, tmp_path: Path) -> None:
    path = header(tmp_path, dict.fromkeys(names, (2, 4, 1, 1)))
    with pytest.raises(UnsupportedArchitecture, match=words) as caught:
        layout_of(path)
    assert str(tmp_path) not in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = header(tmp_path, {STEM: (2, 4, 1, 1), CLIP: (1,)})
    for content in (path.read_bytes()[:-1], b"", b"\x02" + bytes(7) + b"{}x", bytes(16)):
        path.write_bytes(content)
        with pytest.raises(CorruptFile):
            layout_of(path)
