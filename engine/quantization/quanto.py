"""Checkpoints of optimum-quanto in safetensors.

A layer has `weight._data` [N, K], 8-bit integers or floats (float8_e4m3fn), and `weight._scale`
[N, 1]. Numbers of 4 and 2 bits are refused, because their files do not state the shape of a weight.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch

from engine.errors import ModelLoadError
from engine.quantization.compressed_tensors import integer_layer
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8 import fp8_layer
from engine.quantization.int4_groups import is_slower_packed_like
from engine.quantization.renamed import renamed_layer
from kernels import GGUFType

_NUMBERS = "weight._data"
_NAMES = {"weight": _NUMBERS, "weight_scale": "weight._scale"}
"""Kinds of tensors by those of compressed-tensors."""
_UNUSED = ("input_scale", "output_scale")


class QuantoFormat(StoredFormat):
    """Checkpoints of quanto, detected by `quant_method` or by the file that quanto writes beside
    them."""

    side_file = "quanto_qmap.json"

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        is_map = bool(config) and all(
            isinstance(one, dict) and one.keys() == {"weights", "activations"}
            for one in config.values()
        )
        return cls() if is_map or config.get("quant_method") == "quanto" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        names = [name for name in headers if f".{_NUMBERS}" in name]
        return {
            layer: _layer(layer, name, headers, device)
            for layer, name in ((name.partition(f".{_NUMBERS}")[0], name) for name in names)
        }

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        return is_slower_packed_like(layers.values(), dtype, lambda _: GGUFType.Q8_0)


def _layer(layer: str, name: str, headers: Headers, device: str) -> QuantizedLayer:
    if name != f"{layer}.{_NUMBERS}" or headers[name].type not in ("I8", "F8_E4M3"):
        raise ModelLoadError(
            f"{name} has type {headers[name].type}: of quanto's weights only qint8 and qfloat8 can "
            f"be read; use those, or convert the unquantised model with tandem quantize"
        )

    def described(own: Headers) -> QuantizedLayer:
        if headers[name].type == "I8":
            return integer_layer(layer, own, device)
        return fp8_layer(layer, own, device, None, _UNUSED)

    return renamed_layer(layer, headers, _NAMES, described)
