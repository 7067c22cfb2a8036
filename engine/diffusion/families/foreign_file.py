"""Loads transformers of image models from one safetensors file as other tools than diffusers write
it, such as Black Forest Labs and ComfyUI.

It lies in the `transformer` folder of a diffusers checkpoint, beside `config.json`, which gives the
model's shape. Text encoders and a VAE in the file are left out, as the checkpoint has its own.
Weights in 8-bit floats stay packed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import ModelMixin

from engine.diffusion.families.components import check_component
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.original_names import OriginalNames, rows_of
from engine.diffusion.families.packed_component import empty_component, load_packed
from engine.diffusion.families.transformer_names import PREFIX, is_foreign, names_in
from engine.errors import ModelLoadError
from engine.files.checkpoint_files import read_json
from engine.quantization.format import Headers, QuantizedLayer, TensorHeader
from engine.quantization.fp8 import FP8_TYPE, fp8_layer
from engine.weights.safetensors import file_headers, iter_file_tensors, read_header

Transformer = TypeVar("Transformer", bound=ModelMixin)

_DIFFUSERS = "diffusion_pytorch_model"
"""The beginning of the names of diffusers' files."""
_ONE = TensorHeader((), "F32")
_NOTES = ("scaled_fp8", ".comfy_quant", "__index_timestep_zero__")
"""The ends of the names of tensors in which ComfyUI notes a model's format or variant."""
_FLOATS = ("F32", "F16", "BF16", FP8_TYPE, "F8_E5M2")


def find_foreign(folder: Path) -> Path | None:
    """The file in a component's folder; None if there is none, or weights of diffusers.

    Raises:
        ModelLoadError: there are several.
    """
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    others = [name for name in names if not name.startswith(_DIFFUSERS)]
    if len(others) < len(names):
        whole = folder / f"{_DIFFUSERS}.safetensors"
        return whole if whole.exists() and is_foreign(read_header(whole)) else None
    if len(others) > 1:
        raise ModelLoadError(
            f"component {folder.name!r} has {len(others)} .safetensors files "
            f"({', '.join(others[:8])}), none of which has one of diffusers' names; keep one"
        )
    return folder / others[0] if others else None


def load_foreign(model: type[Transformer], path: Path, options: LoadOptions) -> Transformer:
    """Build a transformer with the shape in `config.json` beside the file.

    Raises:
        MissingWeight, ShapeMismatch, CorruptFile: the file is incomplete, damaged or of another
            model; the message names the tensor.
        ModelLoadError: it cannot be built.
    """
    check_component(path.parent)
    config = read_json(path.parent / "config.json")
    num_rows = rows_of(empty_component(model, config).state_dict())
    headers = foreign_headers(path)
    names = names_in(headers, model, config)
    renamed = _renamed_headers(headers, names, num_rows)
    layers = fp8_layers_of(renamed, options.device.type)
    unscaled = {f"{name}.weight_scale" for name in layers} - renamed.keys()
    scales = ((name, torch.ones(())) for name in unscaled)
    tensors = chain(_renamed(path, headers, names, num_rows), scales)
    return load_packed(model, path.parent, tensors, layers, options)


def foreign_headers(path: Path) -> Headers:
    """The headers of the transformer's tensors by their names in the file, without the prefix.

    Raises:
        ModelLoadError: weights are in a format that is not supported.
    """
    headers = file_headers(path)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in headers) else ""
    found = {
        name.removeprefix(prefix): header
        for name, header in headers.items()
        if name.startswith(prefix) and not name.endswith(_NOTES)
    }
    for name, header in found.items():
        if name.endswith(".weight") and header.type not in _FLOATS:
            raise ModelLoadError(
                f"{path.name}: {name} has type {header.type}; only {', '.join(_FLOATS)} are "
                f"supported: take a file in bf16 or fp8, or a GGUF file"
            )
    return found


def fp8_layers_of(headers: Headers, device: str) -> dict[str, QuantizedLayer]:
    """The layers of 8-bit floats. Those without a scale have the scale 1."""
    end = ".weight"
    names = [
        name.removesuffix(end)
        for name, header in headers.items()
        if name.endswith(end) and header.type == FP8_TYPE and len(header.shape) == 2
    ]
    scaled = {f"{name}.weight_scale": _ONE for name in names} | dict(headers)
    return {name: fp8_layer(name, scaled, device, None, ("input_scale",)) for name in names}


def _renamed_headers(
    headers: Headers, names: OriginalNames, num_rows: Mapping[str, int]
) -> dict[str, TensorHeader]:
    return {
        renamed: replace(header, shape=tuple(piece.shape))
        for name, header in headers.items()
        for renamed, piece in names.to_diffusers(
            name, torch.empty(header.shape, device="meta"), num_rows
        ).items()
    }


def _renamed(
    path: Path, headers: Headers, names: OriginalNames, num_rows: Mapping[str, int]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the transformer's tensors, which may be views of the mapped file."""
    for name, tensor in iter_file_tensors(path):
        own = name.removeprefix(PREFIX)
        if own in headers:
            # Some tools store biases in 8-bit floats, too, with which nothing can be computed.
            whole = tensor.float() if own.endswith(".bias") else tensor
            yield from names.to_diffusers(own, whole, num_rows).items()
