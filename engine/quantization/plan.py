"""The plan of which layers of a checkpoint use which method, and the memory of all weights."""

import math
from collections.abc import Mapping
from typing import Any

import structlog

from engine.quantization.format import Headers, QuantizedLayer, StoredFormat, TensorHeader
from engine.quantization.method import LinearMethod
from engine.quantization.plain import UnpackingMethod, UnquantizedMethod
from engine.quantization.registry import load_format

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by checkpoint name; for GGUF's blocks in numbers."""
Layers = Mapping[str, QuantizedLayer]
"""Layers by name, without a tensor's kind."""
OUTPUT_LAYER = "lm_head"
"""The name of a text model's output layer."""
PICTURE_ENCODER = "picture_encoder."
"""The beginning of the names of a text model's encoder for pictures."""

log = structlog.get_logger(__name__)


def made_at_load(name: str, headers: Headers) -> dict[str, QuantizedLayer]:
    """Return all linear layers with plain weights that fit a format; the log names the others. An
    encoder for pictures stays as the checkpoint has it.

    Args:
        headers: headers of linear layers' tensors.
    """
    chosen = load_format(name)
    layers, odd = {}, []
    for tensor, header in headers.items():
        layer = tensor.removesuffix(".weight")
        if layer == tensor or len(header.shape) != 2 or layer.startswith(PICTURE_ENCODER):
            continue
        is_output = layer == OUTPUT_LAYER
        method_for = chosen.output_method_for if is_output else chosen.method_for
        method = method_for(*header.shape)
        if method is not None:
            layers[layer] = QuantizedLayer(method, *header.shape)
        elif not is_output:
            odd.append(layer)
    if odd:
        log.info(
            "layers whose sizes do not fit the format stay unquantised",
            format=name,
            names=sorted(odd),
        )
    return layers


def unpacked(
    stored: StoredFormat, headers: Headers, name: str, plain: UnquantizedMethod, device: str
) -> dict[str, QuantizedLayer]:
    """Return layers of a checkpoint's format, kept plain or in a format that is made at load.

    Args:
        name: the name of the format to keep, or `none`.
        plain: the method of weights that are not quantised.
    """
    found = stored.layers(headers, device)
    owned = {f"{layer}.{kind}" for layer, one in found.items() for kind in one.owned_kinds()}
    weights = {tensor: header for tensor, header in headers.items() if tensor not in owned}
    weights |= {
        f"{layer}.weight": TensorHeader((one.out_features, one.in_features), "")
        for layer, one in found.items()
    }
    kept = {} if name == "none" else made_at_load(name, weights)
    for layer, one in found.items():
        kept[layer] = kept_by(kept[layer].method if layer in kept else plain, one)
    return kept


def kept_by(method: LinearMethod[Any], layer: QuantizedLayer) -> QuantizedLayer:
    """Return a layer with another method than the checkpoint's."""
    unpacking = UnpackingMethod(layer.method, method)
    return QuantizedLayer(unpacking, layer.out_features, layer.in_features)


def num_bytes(shapes: Shapes, layers: Layers, dtype_bytes: int) -> int:
    """Return the memory of all weights.

    Args:
        shapes: shapes of all tensors of the checkpoint.
        layers: the quantised layers. A layer without tensors of its own, such as a tied output
            layer, is a second copy.
        dtype_bytes: bytes of a number that is not quantised.
    """
    owned = {f"{name}.{kind}" for name, layer in layers.items() for kind in layer.owned_kinds()}
    plain = sum(math.prod(shape) for name, shape in shapes.items() if name not in owned)
    quantised = math.fsum(layer.num_bytes(dtype_bytes) for layer in layers.values())
    return math.ceil(plain * dtype_bytes + quantised)
