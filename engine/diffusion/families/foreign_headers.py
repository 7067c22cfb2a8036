"""Reads the headers of transformers that other tools than diffusers wrote
(`engine.diffusion.families.foreign_file`), without diffusers, whose import takes a second."""

from pathlib import Path

from engine.diffusion.families.transformer_names import PREFIX, is_foreign
from engine.errors import ModelLoadError
from engine.quantization.format import Headers, QuantizedLayer, TensorHeader
from engine.quantization.fp8 import FP8_TYPE, fp8_layer
from engine.weights.safetensors import file_headers, read_header

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
