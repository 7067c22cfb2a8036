"""Chooses the layers of image models that are quantised at load, by name and shape alone.

These are the linear layers inside repeated blocks. They make up nearly all of a model, while
embedders and output layers are small and show errors most.
"""

from typing import get_args

from engine.contract.image_settings import ImageQuantization
from engine.quantization.format import QuantizedLayer
from engine.quantization.registry import load_format

QUANTIZATIONS: tuple[ImageQuantization, ...] = get_args(ImageQuantization)

_KEPT = ("wo",)
"""Layers that stay plain: T5 reads the dtype of `wo` to cast its input."""


def quantized_layer(name: str, shape: tuple[int, int], kind: str) -> QuantizedLayer | None:
    """How a linear layer is quantised; None if it stays plain.

    Args:
        name: the dotted name within the model; in repeated blocks it contains a number.
        shape: the shape of its weight, `(out, in)`.
        kind: one of `QUANTIZATIONS`.
    """
    *path, attribute = name.split(".")
    in_block = any(part.isdigit() for part in path)
    if kind == "none" or not in_block or attribute in _KEPT:
        return None
    method = load_format(kind).method_for(*shape)
    return None if method is None else QuantizedLayer(method, *shape)
