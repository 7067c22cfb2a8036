"""Transformers in one safetensors file, with the names of their original releases."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.registry import load_family
from engine.errors import MissingWeight, ModelLoadError, ShapeMismatch, UnsupportedArchitecture
from engine.quantization.method_module import MethodModule
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.gguf_transformers import (
    original_flux,
    original_flux2,
    original_sd3,
    original_z_image,
)
from tests.helpers.diffusion.tiny_families import CPU, load_folder
from tests.helpers.diffusion.tiny_flux2 import flux2_parts
from tests.helpers.diffusion.tiny_language import qwen_image_parts, z_image_parts
from tests.helpers.diffusion.tiny_transformers import (
    flux_parts,
    pipeline_of,
    predict,
    sd3_parts,
    sd3_transformer,
    stirred,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PREFIX = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]


def sd35_parts(seed: int) -> Any:
    """SD 3.5 medium has norms of queries and keys, and a second attention in its first blocks."""
    parts = sd3_parts(seed, with_t5=False)
    parts.transformer = stirred(sd3_transformer(qk_norm="rms_norm", dual_attention_layers=(0,)))
    return parts


def z_image_names(state: Tensors) -> Tensors:
    """The file keeps the leading ones that ggml drops."""
    pads = {name: state[name] for name in state if name.endswith("_pad_token")}
    return original_z_image(state) | pads


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Tensors], Tensors]]] = {
    "flux": (lambda seed: flux_parts(seed, {"guidance_embeds": True}), original_flux),
    "flux2": (flux2_parts, original_flux2),
    "sd3": (lambda seed: sd3_parts(seed, with_t5=False), original_sd3),
    "sd35": (sd35_parts, original_sd3),
    "z_image": (z_image_parts, z_image_names),
    "qwen_image": (qwen_image_parts, dict),
}


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensors, torch.Tensor]:
    """A diffusers folder whose transformer's weights are replaced, these under their original names
    and without a prefix, and what the family predicts with diffusers' file."""
    make, rename = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    parts = make(random.randrange(2**31))
    pipeline = parts.pipeline() if request.param == "flux2" else pipeline_of(parts)
    pipeline.save_pretrained(folder)
    original = rename(load_file(folder / "transformer" / WEIGHTS))
    predicted = predict(load_folder(folder))
    return folder, {name.removeprefix(PREFIX): t.clone() for name, t in original.items()}, predicted


def save(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> Path:
    """Save a file as the transformer's only one."""
    file = folder / "transformer" / name
    for other in file.parent.glob("*.safetensors"):
        other.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def whole(tensors: Tensors) -> Tensors:
    """An all-in-one checkpoint, with tensors of a text encoder and a VAE."""
    others = {"text_encoders.clip_l.logit_scale": torch.ones(1), "vae.a.weight": torch.ones(2, 2)}
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()} | others


def test_the_original_names_are_read(model: Any) -> None:
    folder, tensors, predicted = model
    checkpoint = Checkpoint("diffusers", folder, "tiny")
    save(folder, tensors, WEIGHTS)
    plain = weight_bytes(checkpoint, dtype=torch.float32)
    assert (predict(load_folder(folder)) - predicted).abs().max() < 1e-6
    save(folder, whole(tensors))
    assert (predict(load_folder(folder)) - predicted).abs().max() < 1e-6
    assert weight_bytes(checkpoint, dtype=torch.float32) == plain, "other parts are not counted"


def in_fp8(tensors: Tensors, *, scale: str | None) -> tuple[Tensors, Tensors]:
    """The file with matrices in 8-bit floats, and with the values that they stand for.

    Args:
        scale: the name of the scales; None: all are 1, and biases are in 8-bit floats as well.
    """
    packed: Tensors = {}
    plain: Tensors = {}
    for name, tensor in tensors.items():
        packed[name] = plain[name] = tensor
        is_matrix = name.endswith(".weight") and tensor.ndim == 2
        if is_matrix or (scale is None and name.endswith(".bias")):
            factor = torch.tensor(1.0) if scale is None else tensor.abs().max() / 448
            packed[name] = (tensor / factor).to(torch.float8_e4m3fn)
            plain[name] = packed[name].float() * factor
        if is_matrix and scale is not None:
            layer = name.removesuffix(".weight")
            packed[f"{layer}.{scale}"] = factor.clone()
            unused = {"scale_weight": "scale_input", "weight_scale": "input_scale"}[scale]
            packed[f"{layer}.{unused}"] = torch.tensor([random.random()])
    packed["__index_timestep_zero__"] = torch.empty(0)
    if scale == "scale_weight":
        packed["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return packed, plain


@pytest.mark.each_value
@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale", None])
def test_weights_in_8_bit_floats_stay_packed(model: Any, scale: str | None) -> None:
    folder, tensors, _ = model
    packed, plain = in_fp8(tensors, scale=scale)
    save(folder, plain)
    predicted = predict(load_folder(folder))
    whole_size = weight_bytes(Checkpoint("diffusers", folder, "tiny"), dtype=torch.float32)
    save(folder, whole(packed))
    family = load_folder(folder)
    assert (predict(family) - predicted).abs().max() < 1e-4
    layers = [one for one in family._transformer.modules() if isinstance(one, MethodModule)]
    assert len(layers) >= 14
    freed = whole_size - weight_bytes(Checkpoint("diffusers", folder, "tiny"), dtype=torch.float32)
    numbers = sum(one.in_features * one.out_features for one in layers)
    assert freed > 2.5 * numbers, "a number takes a byte and not four"
    with pytest.raises(ModelLoadError, match="quantised already"):
        load_folder(folder, "bnb-int8")


def test_a_file_can_be_quantised_while_loading(model: Any) -> None:
    folder, tensors, predicted = model
    save(folder, tensors)
    found = predict(load_folder(folder, "int8-weights"))
    assert 1e-6 < (found - predicted).norm() / predicted.norm() < 0.2


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    parts = flux_parts(1, {"guidance_embeds": True})
    pipeline_of(parts).save_pretrained(tmp_path)
    tensors = original_flux(load_file(tmp_path / "transformer" / WEIGHTS))
    rest = dict(tensors)
    fused = rest.pop("double_blocks.0.img_attn.qkv.weight")
    for changed, error, words in (
        (rest, MissingWeight, r"lacks transformer_blocks\.0\.attn\.to_q\.weight"),
        (rest | {"double_blocks.0.img_attn.qkv.weight": fused[:-1]}, ShapeMismatch, "191 rows"),
        (tensors | {"double_blocks.9.a.weight": fused.clone()}, ShapeMismatch, r"double_blocks\.9"),
    ):
        save(tmp_path, changed)
        with pytest.raises(error, match=words):
            load_folder(tmp_path)
    save(tmp_path, tensors | {"double_blocks.0.img_mlp.0.weight": fused.to(torch.uint8)})
    with pytest.raises(ModelLoadError, match="type U8"):
        load_folder(tmp_path)
    save(tmp_path, tensors)
    save_file(tensors, tmp_path / "transformer" / "b.safetensors")
    with pytest.raises(ModelLoadError, match=r"2 \.safetensors files \(b\.safetensors, model"):
        load_folder(tmp_path)


def test_a_transformer_alone_is_refused_with_the_way_to_serve_it(model: Any) -> None:
    folder, tensors, _ = model
    for each in (tensors, whole(tensors)):
        checkpoint = Checkpoint("single_file", save(folder, each), "tiny")
        with pytest.raises(UnsupportedArchitecture, match="into the folder 'transformer'"):
            load_family(checkpoint, dtype=torch.float32, device=CPU)
