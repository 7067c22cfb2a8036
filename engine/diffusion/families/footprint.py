"""Memory that an image model's weights will take, from the headers of its files."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.checkpoint_files import read_json
from engine.diffusion.families.quantization_rules import (
    Quantization,
    is_quantized,
    quantized_bytes,
)
from engine.diffusion.families.registry import INDEX
from engine.weights.diffusers_layout import FULL_FIRST, UNUSED, choose_weights
from engine.weights.safetensors import read_header
from engine.weights.source import Checkpoint

_DENOISERS = ("unet", "transformer")
"""What the names of denoising components, and of their tensors in single files, begin with."""
_SINGLE_FILE_DENOISER = "model.diffusion_model."
_T5 = "T5EncoderModel"


def weight_bytes(
    checkpoint: Checkpoint, *, dtype: torch.dtype, quantization: Quantization = "none"
) -> int:
    """Size of all weights once they are loaded.

    On a CPU, quantising a component takes the room of its plain weights for the time of loading.

    Args:
        dtype: of plain weights.
        quantization: of the denoiser and of T5 encoders.
    """
    if checkpoint.kind == "single_file":
        return _file_bytes(checkpoint.path, dtype, quantization, prefix=_SINGLE_FILE_DENOISER)
    return sum(
        _component_bytes(folder, dtype, quantization if quantizable else "none")
        for folder, quantizable in _components(checkpoint.path)
    )


def _components(path: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of the components that are served, and whether quantisation is for them."""
    for name, entry in read_json(path / INDEX).items():
        if isinstance(entry, list) and name not in UNUSED and (path / name).is_dir():
            yield path / name, name.startswith(_DENOISERS) or entry[-1] == _T5


def _component_bytes(folder: Path, dtype: torch.dtype, quantization: Quantization) -> int:
    _, names = choose_weights([file.name for file in folder.iterdir()], FULL_FIRST)
    plain = sum(_file_bytes(folder / name, dtype, quantization) for name in names)
    # A GGUF file stays packed in memory.
    return plain + sum(file.stat().st_size for file in folder.glob("*.gguf"))


def _file_bytes(
    file: Path, dtype: torch.dtype, quantization: Quantization, prefix: str = ""
) -> int:
    """Args: prefix: quantisation is for tensors whose names begin with it."""
    total = 0
    for name, entry in read_header(file).items():
        shape, layer = entry["shape"], name.removesuffix(".weight")
        is_linear = layer != name and len(shape) == 2 and name.startswith(prefix)
        if is_linear and is_quantized(layer.removeprefix(prefix), shape, quantization):
            total += quantized_bytes(shape, quantization)
        else:
            total += dtype.itemsize * math.prod(shape)
    return total
