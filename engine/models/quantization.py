"""Which linear layers of a model keep their weights in few bits."""

import math
from collections import Counter
from collections.abc import Mapping

import structlog
import torch

from engine.models.layers.gguf_method import GgufMethod
from engine.models.layers.int8_method import Int8Method
from engine.models.layers.panels_method import PanelsMethod
from kernels import GGUFType
from kernels.measured.product_times import mean_ratio, prefers_plain
from kernels.measured.self_benchmark import product_times

Shapes = Mapping[str, tuple[int, ...]]
"""Checkpoint name → shape in numbers, packed or not."""

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"

log = structlog.get_logger(__name__)


def gguf_methods(
    types: Mapping[str, GGUFType], *, int8_activations: bool
) -> dict[str, PanelsMethod]:
    """Layer name → method, for the layers that a file has packed."""
    return {name: GgufMethod(quant_type, int8_activations) for name, quant_type in types.items()}


def int8_methods(shapes: Shapes, *, tied: bool) -> dict[str, PanelsMethod]:
    """All linear layers whose rows are whole groups; the others are named in the log."""
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    embedding = layers.pop(EMBEDDING, None)
    if tied and embedding is not None:
        layers[HEAD] = embedding
    odd = sorted(name for name, shape in layers.items() if not Int8Method.takes(shape[1]))
    if odd:
        log.info("layers that do not divide into groups of 32 stay in 16 bits", names=odd)
    return {name: Int8Method() for name in layers if name not in odd}


def num_bytes(shapes: Shapes, methods: Mapping[str, PanelsMethod], dtype_bytes: int) -> int:
    """What the weights take in memory. A tied output layer that is quantised is a second copy."""
    total = 0.0
    for name, shape in shapes.items():
        method = methods.get(name.removesuffix(".weight"))
        bits = 8 * dtype_bytes if method is None else method.bits_per_weight
        total += math.prod(shape) * bits / 8
    if HEAD in methods and f"{HEAD}.weight" not in shapes:
        total += math.prod(shapes[f"{EMBEDDING}.weight"]) * methods[HEAD].bits_per_weight / 8
    return math.ceil(total)


def is_slower_packed(types: Mapping[str, GGUFType], shapes: Shapes, dtype: torch.dtype) -> bool:
    """Whether products with a file's packed layers are slower, on this machine's CPU, than with
    the same weights in `dtype`; measured unless it is known (`kernels.measured.self_benchmark`).

    Args:
        types: of packed layers, by name.
        shapes: of the checkpoint's weights.
        dtype: of activations, too.
    """
    num_weights = Counter[GGUFType]()
    for name, quant_type in types.items():
        shape = shapes.get(f"{name}.weight") or shapes[f"{EMBEDDING}.weight"]  # a tied output layer
        num_weights[quant_type] += math.prod(shape)
    ratio = mean_ratio(product_times(num_weights.keys(), dtype), num_weights)
    is_slower = prefers_plain(ratio)
    log.info(
        "packed weights timed against plain ones",
        time_ratio=round(ratio, 2),
        types=[one.name for one in num_weights],
        keeps="plain" if is_slower else "packed",
    )
    return is_slower
