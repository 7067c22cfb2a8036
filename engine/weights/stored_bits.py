"""What a checkpoint stores its weights in, and in how many bits each, whatever the model keeps it
in."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from engine.quantization.format import Headers

FEW_BITS = 4
"""Below it models lose more than averages over texts show."""


def stored_type(headers: Headers) -> str:
    """That most numbers have in the checkpoint, as its format calls it."""
    counts: Counter[str] = Counter()
    for header in headers.values():
        counts[header.type] += math.prod(header.shape)
    return counts.most_common(1)[0][0] if counts else ""


def stored_bits(headers: Headers, stated: Mapping[str, Any]) -> float | None:
    """Mean bits of a weight in the blocks' linear layers; None if the files do not tell.

    Args:
        headers: of the checkpoint's tensors.
        stated: what it says of its quantization; empty if nothing.
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
