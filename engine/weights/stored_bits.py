"""The type and the number of bits of a checkpoint's weights, however the model will keep them."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engine.quantization.format import Headers

FEW_BITS = 4
"""Models with fewer bits per weight lose more than averages over texts show."""


def stored_type(headers: Headers) -> str:
    """The type of most numbers in the checkpoint, with its format's name for it."""
    counts: Counter[str] = Counter()
    for header in headers.values():
        counts[header.type] += math.prod(header.shape)
    return counts.most_common(1)[0][0] if counts else ""


def stored_bits(headers: Headers, stated: Mapping[str, Any]) -> float | None:
    """The mean bits per weight of the blocks' linear layers; None if the files do not say.

    Args:
        headers: the headers of the checkpoint's tensors.
        stated: what the checkpoint says about its quantization; empty if nothing.
    """
    bits = stated.get("bits", stated.get("w_bit"))
    if isinstance(bits, int | float):
        return float(bits)
    types = GGMLQuantizationType.__members__
    sizes = [
        (math.prod(header.shape), GGML_QUANT_SIZES[types[header.type]])
        for name, header in headers.items()
        if ".layers." in name and len(header.shape) == 2 and header.type in types
    ]
    total = sum(number for number, _ in sizes)
    stored = math.fsum(8 * number * num_bytes / block for number, (block, num_bytes) in sizes)
    return stored / total if total else None
