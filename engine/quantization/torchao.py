"""Checkpoints of torchao in safetensors, as transformers' TorchAoConfig writes them.

The weight of a layer is several tensors, `_weight_qdata` and others:

- 8-bit integers, or fewer bits in a byte each: [N, K] (int8), `_weight_scale` [N, G] and
  `_weight_zero_point` [N, G] (int8), see `compressed_tensors.py`;
- 8-bit floats: [N, K] (float8_e4m3fn) and `_weight_scale`, see `fp8.py`.

4-bit integers that are packed for kernels of one kind of device are refused. Activations keep their
16 bits, even if the checkpoint is meant for rounded ones.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch

from engine.errors import MissingWeight, ModelLoadError
from engine.quantization.compressed_tensors import integer_layer
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.fp8 import FP8_TYPE, fp8_layer
from engine.quantization.int4_groups import is_matrix, is_slower_packed_like, unsupported
from engine.quantization.renamed import renamed_layer
from kernels import GGUFType

_PREFIX = "_weight_"
_NUMBERS = f"{_PREFIX}qdata"
_NAMES = {
    "weight": _NUMBERS,
    "weight_scale": f"{_PREFIX}scale",
    "weight_zero_point": f"{_PREFIX}zero_point",
}
"""Kinds of tensors by those of compressed-tensors."""


class TorchaoFormat(StoredFormat):
    """Checkpoints of torchao, detected by `quant_method`.

    Tensors tell which layers are quantised.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        stated = config.get("quant_type")
        if not isinstance(stated, dict):
            raise unsupported(
                "torchao", "quant_type", stated, "an object, as torchao writes it now"
            )
        self._sym = not _states_zero_points(stated)

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls(config) if config.get("quant_method") == "torchao" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        names = [name for name in headers if name.endswith(f".{_NUMBERS}")]
        layers = [name.removesuffix(f".{_NUMBERS}") for name in names]
        return {name: self._layer(name, headers, device) for name in layers}

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        return is_slower_packed_like(layers.values(), dtype, lambda _: GGUFType.Q8_0)

    def _layer(self, name: str, headers: Headers, device: str) -> QuantizedLayer:
        start = f"{name}.{_PREFIX}"
        unknown = [one for one in headers if one.startswith(start)]
        unknown = [one for one in unknown if one.removeprefix(f"{name}.") not in _NAMES.values()]
        numbers, scale = (
            headers.get(f"{name}.{_NAMES[kind]}") for kind in ("weight", "weight_scale")
        )
        assert numbers is not None
        is_transposed = (
            scale is not None
            and len(scale.shape) == 2
            and scale.shape[0] not in (1, numbers.shape[0])
            and numbers.type == "I8"
        )
        if unknown or is_transposed or numbers.type not in ("I8", FP8_TYPE):
            raise ModelLoadError(
                f"{name}.{_NUMBERS} has type {numbers.type} and shape {numbers.shape}"
                f"{f' beside {unknown[0]}' if unknown else ''}: these are weights that torchao "
                f"packed for kernels of its own; use int8 or float8 weights, or convert the "
                f"unquantised model with tandem quantize"
            )

        if numbers.type == "I8" and not self._sym and f"{start}zero_point" not in headers:
            raise MissingWeight(
                f"the checkpoint lacks {start}zero_point, which its configuration needs; "
                f"fetch the model again"
            )

        def described(own: Headers) -> QuantizedLayer:
            if numbers.type == "I8":
                return integer_layer(name, own, device, sym=self._sym)
            block = None
            if scale is not None and is_matrix(scale.shape) and is_matrix(numbers.shape):
                height, width = (
                    -(-size // count)
                    for size, count in zip(numbers.shape, scale.shape, strict=True)
                )
                block = height, width
            return fp8_layer(name, own, device, block, ())

        return renamed_layer(name, headers, _NAMES, described)


def _states_zero_points(stated: object) -> bool:
    """Whether the configuration of some layer says that weights are not symmetric."""
    if isinstance(stated, list):
        return any(map(_states_zero_points, stated))
    if not isinstance(stated, dict):
        return False
    for key in ("mapping_type", "weight_mapping_type"):
        mapping = stated.get(key)
        if isinstance(mapping, dict) and "ASYMMETRIC" in str(mapping.get("_data")):
            return True
    return any(map(_states_zero_points, stated.values()))
