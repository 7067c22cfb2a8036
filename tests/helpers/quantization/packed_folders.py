"""Writes copies of model folders with quantised weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.models.json_files import change_json

Made = tuple[dict[str, Tensor], Tensor]
"""The tensors by kind, and the weight [N, K] fp32."""


def write_packed(
    original: Path, folder: Path, quantise: Callable[[str, Tensor], Made | None], config: Any
) -> tuple[Path, Path]:
    """Write a model folder with quantised layers, and its twin with plain weights.

    Args:
        quantise: makes a layer's tensors of its weight, or None for a layer that stays plain.
        config: the value of `quantization_config`; `...` for none.
    """
    packed, twin = folder / "packed", folder / "twin"
    for copy in (packed, twin):
        shutil.copytree(original, copy)
    tensors, plain = {}, {}
    for name, tensor in load_file(original / "model.safetensors").items():
        layer, _, kind = name.rpartition(".")
        is_stack = layer.endswith(".experts") and kind.endswith("_proj")  # and transposed
        made = None
        if kind == "weight":
            made = quantise(layer, tensor)
        elif is_stack:
            made = quantise(name, tensor.mT.flatten(0, 1))
        if made is None:
            tensors[name] = plain[name] = tensor
        elif is_stack:
            sizes = tensor.mT.shape[:2]
            tensors |= {f"{name}_{own}": v.unflatten(0, sizes) for own, v in made[0].items()}
            plain[name] = made[1].unflatten(0, sizes).mT.contiguous()
        else:
            tensors |= {f"{layer}.{own}": value for own, value in made[0].items()}
            plain[name] = made[1].contiguous()
    save_file(plain, twin / "model.safetensors")
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    change_json(packed / "config.json", quantization_config=config)
    return packed, twin
