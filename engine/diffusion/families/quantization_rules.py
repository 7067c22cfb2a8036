"""Which layers bitsandbytes quantises here, and how large they are then: by name and shape alone.

Linear layers inside the repeated blocks: they are nearly all of a model, while embedders and output
layers are small and the ones that errors show in.
"""

import math
from collections.abc import Sequence
from typing import Literal

Quantization = Literal["none", "bnb-nf4", "bnb-int8"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "bnb-nf4", "bnb-int8")

_KEPT = ("wo",)
"""T5 reads this layer's dtype to cast its input, so it must stay a plain one."""
_NF4_IN, _NF4_OUT = 64, 32
"""A layer's sizes must be multiples of these, or it stays as it is: bitsandbytes' kernels for the
CPU pack whole blocks."""
_NF4_BLOCK, _NF4_BLOCKS_OF_SCALES = 64, 256
"""Weights that share a scale of one byte, and scales that share one of four."""


def is_quantized(layer: str, shape: Sequence[int], kind: Quantization) -> bool:
    """Whether a linear layer is quantised.

    Args:
        layer: dotted name within its model; those of repeated blocks have a number in it.
        shape: of its weight, `(out, in)`.
    """
    *path, attribute = layer.split(".")
    in_block = any(part.isdigit() for part in path)
    if kind == "none" or not in_block or attribute in _KEPT:
        return False
    out_features, in_features = shape
    return kind == "bnb-int8" or (in_features % _NF4_IN == 0 and out_features % _NF4_OUT == 0)


def quantized_bytes(shape: Sequence[int], kind: Quantization) -> int:
    """Of a quantised weight `(out, in)` and its scales, a constant kilobyte of tables left out."""
    count = math.prod(shape)
    if kind == "bnb-nf4":
        num_scales = -(-count // _NF4_BLOCK)
        return count // 2 + num_scales + 4 * -(-num_scales // _NF4_BLOCKS_OF_SCALES)
    return count + 4 * shape[0]
