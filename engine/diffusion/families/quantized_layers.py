"""Which layers of image models are quantised at load: by name and shape alone.

Linear layers inside the repeated blocks: they are nearly all of a model, while embedders and output
layers are small and the ones that errors show in.
"""

from typing import get_args

from engine.quantization.format import QuantizedLayer
from engine.quantization.registry import load_format
from engine.quantization.table import ImageQuantization

QUANTIZATIONS: tuple[ImageQuantization, ...] = get_args(ImageQuantization)

_KEPT = ("wo",)
"""T5 reads this layer's dtype to cast its input, so it must stay a plain one."""


def quantized_layer(name: str, shape: tuple[int, int], kind: str) -> QuantizedLayer | None:
    """How a linear layer is kept; None: plain.

    Args:
        name: dotted, within its model; those of repeated blocks have a number in it.
        shape: of its weight, `(out, in)`.
        kind: one of `QUANTIZATIONS`.
    """
    *path, attribute = name.split(".")
    in_block = any(part.isdigit() for part in path)
    if kind == "none" or not in_block or attribute in _KEPT:
        return None
    method = load_format(kind).method_for(*shape)
    return None if method is None else QuantizedLayer(method, *shape)
