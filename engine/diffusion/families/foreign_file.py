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
from engine.diffusion.families.foreign_headers import foreign_headers, fp8_layers_of
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.original_names import OriginalNames, rows_of
from engine.diffusion.families.packed_component import empty_component, load_packed
from engine.diffusion.families.transformer_names import PREFIX, names_in
from engine.files.checkpoint_files import read_json
from engine.quantization.format import Headers, TensorHeader
from engine.weights.safetensors import iter_file_tensors

Transformer = TypeVar("Transformer", bound=ModelMixin)


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
