"""Read a checkpoint, whatever its format: configuration, size, tensors.

The consumer slices what it needs from each tensor, so that loading for one tensor-parallel rank
needs no other reader.
"""

from collections.abc import Container, Iterator

import torch

from engine.models.config import ModelConfig
from engine.weights.config_gguf import read_gguf_config
from engine.weights.config_json import read_config_json
from engine.weights.gguf import iter_gguf_weights, named_tensors, packed_types
from engine.weights.safetensors import folder_shapes, is_redundant, iter_folder_weights
from engine.weights.source import Checkpoint
from kernels import GGUFType


def load_model_config(checkpoint: Checkpoint) -> ModelConfig:
    """
    Raises:
        CorruptFile: a file is damaged.
        UnsupportedArchitecture: a GGUF architecture that no family here covers.
        ModelLoadError: a key is missing or nonsense (named), or the weights are quantised in a way
            that is not supported.
    """
    if checkpoint.kind == "gguf":
        return read_gguf_config(checkpoint.path)
    return read_config_json(checkpoint.path)


def packed_weights(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, GGUFType]:
    """Linear layers whose weights `iter_weights` can give packed: name → type. None in folders."""
    return packed_types(checkpoint.path, config) if checkpoint.kind == "gguf" else {}


def iter_weights(
    checkpoint: Checkpoint, config: ModelConfig, packed: Container[str] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight once as (Hugging Face name, tensor on the CPU).

    Safetensors come as views of the mapped file in the dtype they have; copy them, do not write to
    them. GGUF blocks come as fp32, F32/F16/BF16 as they are, with the rows of Llama's q and k
    projections in Hugging Face's rotary order. A tied output layer is left out.

    Layers in `packed`, names of `packed_weights`, come as the file has them: rows of bytes, also
    in Hugging Face's rotary order. So does a tied output layer, beside the embedding.

    Raises:
        CorruptFile: a file is damaged.
        MissingWeight: the index of a folder names a file or tensor that is not there.
        ModelLoadError: a tensor or a tensor type that is unknown here (named).
    """
    if checkpoint.kind == "gguf":
        return iter_gguf_weights(checkpoint.path, config, packed)
    return iter_folder_weights(checkpoint.path, config)


def weight_shapes(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by Hugging Face name, from the headers alone."""
    if checkpoint.kind == "gguf":
        tensors = named_tensors(checkpoint.path, config)
        return {name: tensor.shape for name, tensor in tensors.items()}
    shapes = folder_shapes(checkpoint.path)
    return {name: s for name, s in shapes.items() if not is_redundant(name, config)}
