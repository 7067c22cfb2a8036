"""Loads transformers of image models from GGUF files; weights stay packed until a layer runs.

Such a file holds only the transformer, with the names of the original release or of diffusers. It
lies in the `transformer` folder of a diffusers checkpoint instead of the safetensors files, beside
`config.json`, which gives the model's shape.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import GGUFQuantizationConfig, ModelMixin
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from engine.diffusion.families.components import check_component
from engine.diffusion.families.original_names import rows_of
from engine.diffusion.families.transformer_names import PREFIX, names_in
from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.files.gguf_part_names import first_part
from engine.weights.gguf_tensors import GGUFTensor, read_tensors

Transformer = TypeVar("Transformer", bound=ModelMixin)

_SHORTENED = {"pos_embed": 2, "_pad_token": 1}
"""The tensors outside of layers whose leading 1 ggml drops, by the end of their names: SD3's table
of positions and Z-Image's padding; and the number of dimensions that are left."""
_PLAIN = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file, or the first of its parts, in a component's folder; None if there is none.

    Raises:
        ModelLoadError: there are several.
    """
    names = sorted({first_part(file.name) for file in folder.glob("*.gguf")})
    if len(names) > 1:
        raise ModelLoadError(
            f"component {folder.name!r} has {len(names)} GGUF files ({', '.join(names)}); keep one"
        )
    return folder / names[0] if names else None


def load_gguf_transformer(
    model: type[Transformer], path: Path, *, dtype: torch.dtype, device: torch.device
) -> Transformer:
    """Build a transformer with the shape in `config.json` beside the file, on `device`.

    Args:
        dtype: the type of activations and of weights that are not quantised.

    Raises:
        CorruptFile: the file is truncated, damaged or not GGUF.
        MissingWeight: the file lacks a tensor, or has another architecture.
        ShapeMismatch: a tensor's shape differs from the config's.
        ModelLoadError: a tensor type is not supported, or there is no config.
    """
    config = _config(model, path)
    with torch.device("meta"):
        empty = model.from_config(config).state_dict()
    found, expected = _read_state(path), empty.keys()
    names, num_rows = names_in(found, model, config), rows_of(empty)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        state |= names.to_diffusers(name, tensor, num_rows)
    if expected - state.keys():
        raise _lacks(path, min(expected - state.keys()))
    if state.keys() - expected:
        raise ShapeMismatch(
            f"{path.name} has a tensor {min(state.keys() - expected)!r} that its config.json has "
            f"no place for; take the config.json of the same model"
        )
    loaded = _build(model, state, path, dtype, device)
    loaded.eval()
    return loaded


def _build(
    model: type[Transformer],
    state: dict[str, torch.Tensor],
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> Transformer:
    try:
        loaded: Transformer = model.from_single_file(
            state,
            config=str(path.parent),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            device=device,
            local_files_only=True,
        )
    except ValueError as error:
        raise ShapeMismatch(f"{path.name} does not fit its config.json: {error}") from error
    return loaded


def _lacks(path: Path, name: str) -> MissingWeight:
    return MissingWeight(
        f"{path.name} lacks tensors of the model that its config.json names, {name} among them; is "
        f"it of another model?"
    )


def _config(model: type[Transformer], path: Path) -> Mapping[str, Any]:
    check_component(path.parent)
    try:
        config: Mapping[str, Any] = model.load_config(str(path.parent), local_files_only=True)
    except OSError as error:
        raise ModelLoadError(
            f"{path.name} needs the transformer's config.json beside it; take it from the "
            f"original model's transformer folder"
        ) from error
    return config


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors; matrices stay packed as stored, everything else is expanded."""
    tensors = read_tensors(path)
    return {name.removeprefix(PREFIX): _tensor(entry) for name, entry in tensors.items()}


def _tensor(entry: GGUFTensor) -> torch.Tensor:
    packed = entry.mapped()
    if entry.type in _PLAIN:
        plain = np.array(packed).view(_PLAIN[entry.type])
        return _shaped(torch.from_numpy(plain).reshape(entry.shape), entry.name)
    if entry.type not in SUPPORTED_GGUF_QUANT_TYPES:
        raise ModelLoadError(
            f"tensor {entry.name!r} has type {entry.type.name}, which is not supported for image "
            f"models; use a file in Q8_0, Q4_0 or a K-quantisation"
        )
    if len(entry.shape) == 2 and not entry.name.endswith(tuple(_SHORTENED)):
        rows = np.array(packed).reshape(entry.shape[0], -1)
        matrix: torch.Tensor = GGUFParameter(torch.from_numpy(rows), quant_type=entry.type)
        return matrix
    expanded = dequantize(np.array(packed), entry.type).reshape(entry.shape)
    return _shaped(torch.from_numpy(expanded), entry.name)


def _shaped(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Restore a leading 1 that ggml dropped."""
    if any(name.endswith(end) and tensor.ndim == left for end, left in _SHORTENED.items()):
        return tensor[None]
    if not torch.isfinite(tensor).all():
        raise CorruptFile(f"tensor {name!r} has values that are not numbers; fetch the file again")
    return tensor
