"""Recognises files of transformers that other tools than diffusers wrote, and finds their names."""

from collections.abc import Iterable, Mapping
from typing import Any

from engine.diffusion.families import flux_names, stable_diffusion_3_names, z_image_names
from engine.diffusion.families.original_names import OriginalNames

PREFIX = "model.diffusion_model."
"""The beginning of names in files that may also hold text encoders and a VAE."""
_OURS = ("transformer_blocks.", "all_x_embedder.")
"""The name prefixes by which diffusers' names are recognised."""
_THEIRS = (PREFIX, "double_blocks.", "joint_blocks.", "noise_refiner.0.attention.qkv.")
_SCALE = ".scale_weight"
"""The end of the names of ComfyUI's scales of 8-bit floats."""


def is_foreign(names: Iterable[str]) -> bool:
    """Whether tensors have other names than diffusers writes."""
    return any(name.startswith(_THEIRS) or name.endswith(_SCALE) for name in names)


def is_transformer(names: Iterable[str]) -> bool:
    """Whether tensors are those of a transformer that draws."""
    parts = ("double_blocks.", "joint_blocks.", "noise_refiner.", "transformer_blocks.")
    return any(name.removeprefix(PREFIX).startswith(parts) for name in names)


def names_in(names: Iterable[str], model: type, config: Mapping[str, Any]) -> OriginalNames:
    """The names that a file uses, without the prefix.

    Args:
        names: the names of its tensors.
        config: the config of a transformer of class `model`.
    """
    if any(name.startswith(_OURS) for name in names):
        return OriginalNames()
    match model.__name__:
        case "FluxTransformer2DModel":
            return flux_names.original_names(config)
        case "Flux2Transformer2DModel":
            return flux_names.original_names(config, flux_names.FLUX_2)
        case "SD3Transformer2DModel":
            return stable_diffusion_3_names.original_names(config)
        case "ZImageTransformer2DModel":
            return z_image_names.original_names(config)
    return OriginalNames()
