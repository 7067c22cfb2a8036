"""What is reserved for weights is what they take."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from torch import nn

from engine.contract.image_settings import ImageQuantization
from engine.contract.settings import EngineConfig
from engine.diffusion.families.convolutions import ArrangedConvolution
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.frame_autoencoder import FrameAutoencoder
from engine.diffusion.families.fused_layers import fuse_layers
from engine.diffusion.families.pipeline_facts import FACTS
from engine.diffusion.families.products import PointwiseConvolution, RowProduct
from engine.diffusion.families.quantized import quantize
from engine.diffusion.families.quantized_layers import QUANTIZATIONS
from engine.diffusion.families.qwen_image_edit import EDITINGS
from engine.diffusion.loading import load_engine
from engine.diffusion.planning import plan
from engine.planning.report import Target
from engine.quantization.method_module import MethodModule
from engine.quantization.registry import load_format
from engine.runtime.device import machine_facts
from engine.weights.source import Checkpoint
from kernels import native
from tests.helpers.diffusion.gguf_transformers import original_flux, write_gguf
from tests.helpers.diffusion.tiny_flux2 import Flux2Parts, flux2_parts
from tests.helpers.diffusion.tiny_language import (
    QwenImageParts,
    frame_vae,
    qwen_image_parts,
    z_image_parts,
)
from tests.helpers.diffusion.tiny_pipelines import tiny_vae
from tests.helpers.diffusion.tiny_transformers import flux_parts, pipeline_of, sd3_parts
from tests.helpers.host import Host
from tests.helpers.json_files import edit_json

CPU = torch.device("cpu")


def flux2_dev_parts(seed: int) -> Flux2Parts:
    return flux2_parts(seed, "dev")


LARGE_ENCODERS = (
    "T5EncoderModel",
    "Qwen3Model",
    "MistralModel",
    "Qwen2_5_VLTextModel",
)
MAKERS = (flux_parts, sd3_parts, flux2_parts, flux2_dev_parts, z_image_parts, qwen_image_parts)
KINDS: tuple[ImageQuantization, ...] = QUANTIZATIONS[1:]


def tensors_of(state: Any) -> list[torch.Tensor]:
    """What a method keeps of a layer."""
    if isinstance(state, torch.Tensor):
        return [state]
    if not is_dataclass(state):
        return []
    return [one for field in fields(state) for one in tensors_of(getattr(state, field.name))]


def size_of(module: nn.Module) -> int:
    """Sum up all weights and buffers."""
    state = list(module.state_dict().values())
    for layer in module.modules():
        if isinstance(layer, MethodModule):
            state += tensors_of(layer.state)
    # Tied weights are one tensor under two names.
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in state}.values())


def quantized_bytes(shape: tuple[int, int], kind: str) -> float:
    method = load_format(kind).method_for(*shape)
    assert method is not None
    return method.num_bytes(*shape, 4)


def keep_what_is_read(parts: Any) -> None:
    """Drop what families drop of text encoders."""
    if isinstance(parts, Flux2Parts):
        parts.text_encoder = parts.family()._encoder.model
    elif isinstance(parts, QwenImageParts):
        parts.text_encoder = parts.text_encoder.model.language_model


def quantize_parts(parts: Any, kind: str) -> None:
    for name, module in vars(parts).items():
        if name == "transformer" or type(module).__name__ in LARGE_ENCODERS:
            quantize(module, kind, dtype=torch.float32, device=CPU)


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", MAKERS)
def test_a_quantised_model(make: Any, kind: ImageQuantization, tmp_path: Path) -> None:
    parts = make(1)
    pipeline = parts.pipeline() if isinstance(parts, Flux2Parts) else pipeline_of(parts)
    pipeline.save_pretrained(tmp_path)
    checkpoint = Checkpoint("diffusers", tmp_path, "m")
    keep_what_is_read(parts)
    modules = [module for module in vars(parts).values() if isinstance(module, nn.Module)]
    plain = sum(map(size_of, modules))
    assert weight_bytes(checkpoint, dtype=torch.float32) == pytest.approx(plain, rel=0.01)
    quantize_parts(parts, kind)
    expected = sum(map(size_of, modules))
    found = weight_bytes(checkpoint, dtype=torch.float32, quantization=kind)
    assert found < 0.9 * plain
    assert 0.97 * expected <= found <= 1.03 * expected


def test_the_engine_asks_for_the_quantised_size(tmp_path: Path) -> None:
    pipeline_of(flux_parts(1)).save_pretrained(tmp_path)
    checkpoint = Checkpoint("diffusers", tmp_path, "m")
    intent = EngineConfig(device="cpu", num_threads=1, image_quantization="bnb-int8")
    host = Host()
    engine, _ = load_engine(checkpoint, "m", intent, host)
    engine.shutdown()
    expected = weight_bytes(checkpoint, dtype=torch.float32, quantization="bnb-int8")
    assert [size for _, purpose, size in host.reserved if purpose == "weights"] == [expected]


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxKontextPipeline", "Flux2KleinPipeline"])
def test_a_plan_has_the_memory_that_the_engine_asks_for(name: str, tmp_path: Path) -> None:
    """As much as the reference images need that the model takes at once."""
    if name == "Flux2KleinPipeline":
        flux2_parts(1).pipeline().save_pretrained(tmp_path)
    else:
        pipeline_of(flux_parts(1, {"guidance_embeds": True})).save_pretrained(tmp_path)
        edit_json(tmp_path / "model_index.json", {"_class_name": name})
    checkpoint, host = Checkpoint("diffusers", tmp_path, "m"), Host()
    intent = EngineConfig(device="cpu", num_threads=1)
    engine, _ = load_engine(checkpoint, "m", intent, host)
    engine.shutdown()
    reserved = {purpose: size for _, purpose, size in host.reserved}
    target = Target(machine=machine_facts("cpu"), process_bytes=0, device="a CPU")
    row = plan(checkpoint, intent, target).rows[0]
    assert (row.weight_bytes, row.step_bytes) == (reserved["weights"], reserved["activations"])
    num_references = {"FluxPipeline": 0, "FluxKontextPipeline": 1, "Flux2KleinPipeline": 10}[name]
    assert row.step_bytes == (1 << 30) + num_references * 4096 * 22 * 64 * 4


def test_as_many_reference_images_are_planned_as_the_models_take() -> None:
    for name, editing in EDITINGS.items():
        assert FACTS[name].max_references == editing.max_images


@pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")
def test_arranged_layers_are_there_a_second_time(tmp_path: Path) -> None:
    """This happens on a CPU in fp32, and in bf16 with convolutions where pairs of such numbers are
    multiplied. The two layers that halve maps are counted with them."""
    vae = tiny_vae(32, 48, 64, groups=8)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    checkpoint, plain = Checkpoint("diffusers", tmp_path, "m"), size_of(vae)
    fuse_layers(vae)
    layers = [layer for layer in vae.modules() if isinstance(layer, ArrangedConvolution)]
    assert len(layers) > 10
    taken = sum(layer.arranged.transformed.nbytes for layer in layers)
    products = [one for one in vae.modules() if isinstance(one, RowProduct | PointwiseConvolution)]
    assert len(products) > 8
    taken += sum(layer.weight.nbytes for layer in products)
    found = weight_bytes(checkpoint, dtype=torch.float32) - plain
    assert found == taken + 4 * 36 * (32 * 32 + 48 * 48)
    assert weight_bytes(checkpoint, dtype=torch.float32, device="cuda") == plain

    halves = tiny_vae(32, 48, 64, groups=8).bfloat16()
    fuse_layers(halves)
    layers = [layer for layer in halves.modules() if isinstance(layer, ArrangedConvolution)]
    taken = sum(layer.arranged.transformed.nbytes for layer in layers)
    skipping = 2 * 16 * (32 * 32 + 48 * 48) if layers else 0
    assert weight_bytes(checkpoint, dtype=torch.bfloat16) == plain / 2 + taken + skipping


@pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")
def test_a_vae_of_videos_has_room_for_its_slices(tmp_path: Path) -> None:
    vae = frame_vae(base_dim=32)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKLQwenImage"]}')
    reserved = weight_bytes(Checkpoint("diffusers", tmp_path, "m"), dtype=torch.float32)
    framed = FrameAutoencoder(vae, dtype=torch.float32, device=CPU)._vae
    layers = [layer for layer in framed.modules() if isinstance(layer, ArrangedConvolution)]
    assert len(layers) > 10
    taken = size_of(framed) + sum(layer.arranged.transformed.nbytes for layer in layers)
    assert taken <= reserved < 2.5 * taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(96, 64), (32, 192), (1024, 512)])
def test_a_layer(shape: tuple[int, int], kind: ImageQuantization) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)))
    assert quantize(model, kind, dtype=torch.float32, device=CPU) == 1
    assert size_of(model) == quantized_bytes(shape, kind)


def test_a_single_file_quantises_its_denoiser_alone(tmp_path: Path) -> None:
    shapes = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (64, 64),
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.time_embed.0.weight": (64, 64),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (64, 64),
    }
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    checkpoint = Checkpoint("single_file", path, "m")
    found = weight_bytes(checkpoint, dtype=torch.bfloat16, quantization="bnb-int8")
    assert found == quantized_bytes((64, 64), "bnb-int8") + 2 * (8 * 4 * 9 + 2 * 64 * 64)


def test_a_gguf_file_stays_packed_whatever_the_dtype(tmp_path: Path) -> None:
    parts = flux_parts(1)
    pipeline_of(parts).save_pretrained(tmp_path)
    checkpoint = Checkpoint("diffusers", tmp_path, "m")
    folder = tmp_path / "transformer"
    without = weight_bytes(checkpoint, dtype=torch.float32) - sum(
        weight.nbytes for weight in parts.transformer.parameters()
    )
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    state = original_flux(parts.transformer.state_dict())
    write_gguf(folder / "q8.gguf", state, GGMLQuantizationType.Q8_0)
    packed = (folder / "q8.gguf").stat().st_size
    assert weight_bytes(checkpoint, dtype=torch.float32) - without == packed
