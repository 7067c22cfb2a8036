"""Which linear layers of a model keep their weights in few bits."""

import math
from collections.abc import Mapping

import structlog

from engine.models.layers.gguf_method import GgufMethod
from engine.models.layers.int8_method import Int8Method
from engine.models.layers.panels_method import PanelsMethod
from kernels import GGUFType

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
