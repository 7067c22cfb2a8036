"""Read a checkpoint, whatever its format: configuration, size, tensors.

The consumer slices what it needs from each tensor, so that loading for one tensor-parallel rank
needs no other reader.
"""

import math
from collections.abc import Iterator

import torch

from engine.models.config import ModelConfig
from engine.weights.config_gguf import read_gguf_config
from engine.weights.config_json import read_config_json
from engine.weights.gguf import iter_gguf_weights, named_tensors
from engine.weights.safetensors import folder_shapes, is_redundant, iter_folder_weights
from engine.weights.source import Checkpoint


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


def iter_weights(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight once as (Hugging Face name, tensor on the CPU).

    Safetensors come as views of the mapped file in the dtype they have; copy them, do not write to
    them. GGUF blocks come as fp32, F32/F16/BF16 as they are, with the rows of Llama's q and k
    projections in Hugging Face's rotary order. A tied output layer is left out.

    Raises:
        CorruptFile: a file is damaged.
        MissingWeight: the index of a folder names a file or tensor that is not there.
        ModelLoadError: a tensor or a tensor type that is unknown here (named).
    """
    if checkpoint.kind == "gguf":
        return iter_gguf_weights(checkpoint.path, config)
    return iter_folder_weights(checkpoint.path, config)


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Size of all weights in bf16, from the headers alone."""
    if checkpoint.kind == "gguf":
        return sum(2 * tensor.num_elements for tensor in named_tensors(checkpoint.path).values())
    config = load_model_config(checkpoint)
    shapes = folder_shapes(checkpoint.path)
    return sum(2 * math.prod(s) for name, s in shapes.items() if not is_redundant(name, config))
