"""Computes the memory of an image model's weights from the headers of its files."""

from collections.abc import Iterator
from pathlib import Path

import torch

from engine.contract.image_settings import ImageQuantization
from engine.diffusion.families.convolutions import arranged_bytes
from engine.diffusion.families.foreign_headers import (
    find_foreign,
    foreign_headers,
    fp8_layers_of,
)
from engine.diffusion.families.pipeline_facts import facts_of
from engine.diffusion.families.products import packed_bytes
from engine.diffusion.families.quantized_layers import quantized_layer
from engine.diffusion.families.registry import INDEX
from engine.files.checkpoint_files import read_json, read_optional_json
from engine.quantization.format import Headers
from engine.quantization.plan import Shapes, num_bytes
from engine.quantization.registry import detect, stated_in
from engine.weights.diffusers_layout import FULL_FIRST, UNUSED, choose_weights
from engine.weights.safetensors import file_headers
from engine.weights.source import Checkpoint

_DENOISERS = ("unet", "transformer")
"""The prefixes of denoising components' names, and of their tensors in single files."""
_SINGLE_FILE_DENOISER = "model.diffusion_model."
_ARRANGED = ("unet", "vae")
"""The prefixes of the names of components whose layers are replaced by our own."""
_SINGLE_FILE_ARRANGED = (_SINGLE_FILE_DENOISER, "first_stage_model.")


def weight_bytes(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    quantization: ImageQuantization = "none",
    device: str = "cpu",
) -> int:
    """The size of all weights after loading.

    On a CPU a component that is quantised while loading needs room for its plain weights meanwhile.

    Args:
        dtype: the type of plain weights.
        quantization: the format of the denoiser and of large text encoders.
        device: on a CPU, convolutions, and small products in fp32, which autoencoders of fp16
            models may also have, exist a second time, arranged. The result is an upper bound:
            headers do not show which of them skip cells, and which tensors are not layers.
    """
    is_arranged = device == "cpu"
    if checkpoint.layout == "single_file":
        whole = file_headers(checkpoint.path)
        plain = _plain_bytes(whole, dtype, quantization, prefix=_SINGLE_FILE_DENOISER)
        ours = {name: one for name, one in whole.items() if name.startswith(_SINGLE_FILE_ARRANGED)}
        return plain + (_arranged_bytes(ours, dtype) if is_arranged else 0)
    total = 0
    facts = facts_of(checkpoint)
    for folder, quantizable in _components(checkpoint.path):
        kept = _headers(folder).items()
        headers = {name: one for name, one in kept if facts.reads(folder.name, name)}
        wanted = quantization if quantizable else "none"
        total += _component_bytes(folder, headers, dtype, wanted, device)
        if is_arranged and folder.name.startswith(_ARRANGED):
            total += _arranged_bytes(headers, dtype)
    return total


def _components(path: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the served components, and whether quantisation applies to them."""
    for name, entry in read_json(path / INDEX).items():
        if isinstance(entry, list) and name not in UNUSED and (path / name).is_dir():
            is_large_encoder = name.startswith("text_encoder") and not entry[-1].startswith("CLIP")
            yield path / name, name.startswith(_DENOISERS) or is_large_encoder


def _headers(folder: Path) -> Headers:
    _, names = choose_weights([file.name for file in folder.iterdir()], FULL_FIRST)
    return {name: one for file in names for name, one in file_headers(folder / file).items()}


def _component_bytes(
    folder: Path,
    headers: Headers,
    dtype: torch.dtype,
    quantization: ImageQuantization,
    device: str,
) -> int:
    foreign = find_foreign(folder) if folder.name == "transformer" else None
    if foreign is not None:
        headers = foreign_headers(foreign)
        layers = fp8_layers_of(headers, device)
        if layers:
            return num_bytes(_shapes(headers), layers, dtype.itemsize)
        return _plain_bytes(headers, dtype, quantization)
    stated = stated_in(read_optional_json(folder / "config.json"))
    stored = detect(stated, headers)
    if stored is not None:
        return num_bytes(_shapes(headers), stored[1].layers(headers), dtype.itemsize)
    # A GGUF file stays packed in memory.
    packed = sum(file.stat().st_size for file in folder.glob("*.gguf"))
    return packed + _plain_bytes(headers, dtype, quantization)


def _plain_bytes(
    headers: Headers, dtype: torch.dtype, quantization: ImageQuantization, prefix: str = ""
) -> int:
    """The size of plain weights. Only tensors whose names begin with `prefix` are quantised."""
    layers = {}
    for name, header in headers.items():
        layer = name.removesuffix(".weight")
        if layer != name and len(header.shape) == 2 and name.startswith(prefix):
            found = quantized_layer(layer.removeprefix(prefix), header.shape, quantization)
            if found is not None:
                layers[layer] = found
    return num_bytes(_shapes(headers), layers, dtype.itemsize)


def _arranged_bytes(headers: Headers, dtype: torch.dtype) -> int:
    # Of kernels over frames, pictures need one slice.
    shapes = [one[:2] + one[-2:] if len(one) == 5 else one for one in _shapes(headers).values()]
    if dtype is torch.bfloat16:
        return sum(arranged_bytes(shape, dtype) for shape in shapes)
    return sum(arranged_bytes(shape, torch.float32) + packed_bytes(shape) for shape in shapes)


def _shapes(headers: Headers) -> Shapes:
    return {name: header.shape for name, header in headers.items()}
