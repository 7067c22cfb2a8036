"""Reads a checkpoint of any format: its configuration, size and tensors.

The consumer takes the slices that it needs from each tensor, so that loading for one
tensor-parallel rank needs no other reader.
"""

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

import torch

from engine.errors import CorruptFile
from engine.files.checkpoint_files import read_json, read_optional_json
from engine.models.config import ModelConfig
from engine.quantization.format import TensorHeader
from engine.quantization.registry import side_files, stated_in
from engine.weights.config_gguf import read_gguf_config
from engine.weights.config_json import read_config_json
from engine.weights.gguf import iter_gguf_weights, named_tensors
from engine.weights.safetensors import (
    folder_headers,
    is_redundant,
    iter_folder_weights,
)
from engine.weights.source import Checkpoint


def load_model_config(checkpoint: Checkpoint) -> ModelConfig:
    """Read the configuration of a checkpoint.

    Raises:
        CorruptFile: a file is damaged.
        UnsupportedArchitecture: no family here has the architecture.
        ModelLoadError: a key is missing or has an impossible value; the message names it.
    """
    if checkpoint.layout == "gguf":
        return read_gguf_config(checkpoint.path, checkpoint.mmproj)
    return read_config_json(checkpoint.path)


def quantization_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says about its quantization outside its tensors; empty if nothing.

    Raises:
        CorruptFile: a file is damaged.
        ModelLoadError: it is not an object.
    """
    if checkpoint.layout == "gguf":
        return {}
    stated = stated_in(read_json(checkpoint.path / "config.json"))
    beside = (read_optional_json(checkpoint.path / name) for name in side_files())
    return stated or next(filter(None, beside), {})


def iter_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    packed: Container[str] = (),
    left_out: Container[str] = (),
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight once as (Hugging Face name, tensor on the CPU).

    Safetensors are views of the mapped file in their own dtype; copy them and do not write to them.
    GGUF blocks become fp32 and F32/F16/BF16 keep their type, with the rows of Llama's q and k
    projections in Hugging Face's rotary order. A tied output layer is left out.

    Layers of a GGUF file in `packed`, of types that the kernels can multiply with, come packed: as
    rows of bytes, also in Hugging Face's rotary order. The same is done for a tied output layer, in
    addition to the embedding. Layers in `left_out` do not come at all.

    Raises:
        CorruptFile: a file is damaged.
        MissingWeight: the index of a folder names a file or tensor that does not exist.
        ModelLoadError: a tensor or a tensor type is unknown; the message names it.
    """
    if checkpoint.layout == "gguf":
        return iter_gguf_weights(checkpoint.path, config, packed, left_out, checkpoint.mmproj)
    return (
        part
        for name, tensor in iter_folder_weights(checkpoint.path, config)
        if name.rpartition(".")[0] not in left_out
        for part in config.parts_of(name, tensor)
    )


def weight_headers(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, TensorHeader]:
    """The headers of all weights that the model reads, by Hugging Face name; the shapes of GGUF
    blocks count numbers."""
    if checkpoint.layout == "gguf":
        return {
            name: TensorHeader(tensor.shape, tensor.type.name)
            for name, tensor in named_tensors(checkpoint.path, config, checkpoint.mmproj).items()
        }
    headers = folder_headers(checkpoint.path)
    return {
        own: replace(one, shape=tuple(part.shape))
        for name, one in headers.items()
        if not is_redundant(name, config)
        for own, part in config.parts_of(config.tensor_name(name), _without_memory(name, one))
    }


def _without_memory(name: str, header: TensorHeader) -> torch.Tensor:
    try:
        return torch.empty(header.shape, device="meta")
    except (RuntimeError, TypeError) as error:
        raise CorruptFile(f"{name[:80]} has an impossible shape; fetch the model again") from error
