"""Weights that stay in the form that a GGUF file has them in."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from engine.errors import ModelLoadError
from engine.quantization.float4_groups import Float4Method, Float4Weight, powers_of_two
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.kept_panels import kept_panels
from engine.quantization.method import (
    LinearMethod,
    LinearPart,
    RowLookup,
    TensorSpec,
    bias_tensors,
)
from engine.quantization.panels import PanelsState, are_panels_slower
from engine.quantization.products import BlocksProduct, fp32_bias
from kernels import GGUFType, fields_apart, panels_from_gguf
from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.quant_type import BLOCKS, row_bytes
from kernels.linear_panels.gguf import FORMATS as PANEL_FORMATS
from kernels.linear_panels.lookup import row_lookup
from kernels.linear_panels.panels import BLOCK


@dataclass(frozen=True, slots=True)
class GgufMethod(LinearMethod[PanelsState | BlocksProduct]):
    """GGUF's weights, on a CPU in panels with the same numbers, on a GPU with the bytes of the
    file."""

    quant_type: GGUFType
    int8_activations: bool = False
    device: str = "cpu"
    """The device, `cpu` or `cuda`, for which memory is counted."""

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        """Return the tensor specs. The weight's shape is [N, bytes of a row]."""
        shape = (out_features, row_bytes(self.quant_type, in_features))
        weight = TensorSpec(shape=shape, out_axis=0, in_axis=1, dtypes=(torch.uint8,))
        return {"weight": weight} | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> PanelsState | BlocksProduct:
        if part.device.type != "cpu":
            return self.keep(self._rows(part), part.device, part.bias())
        panels = kept_panels(
            PANEL_FORMATS[self.quant_type],
            sum(part.out_features),
            part.in_features,
            lambda: panels_from_gguf(self._rows(part), self.quant_type),
        )
        return PanelsState.of(panels, part.bias(), int8_activations=self.int8_activations)

    def keep(
        self, rows: Tensor, device: torch.device, bias: Tensor | None
    ) -> PanelsState | BlocksProduct:
        """Arrange rows of a file for products on a device."""
        if device.type == "cpu":
            panels = panels_from_gguf(rows, self.quant_type)
            return PanelsState.of(panels, bias, int8_activations=self.int8_activations)
        apart = fields_apart(rows.to(device), self.quant_type)
        return BlocksProduct(apart, self.quant_type, fp32_bias(bias))

    def dequantised(self, part: LinearPart) -> Tensor:
        rows = self._rows(part).to(part.device)
        return dequantize(rows, self.quant_type).to(part.dtype)

    def _rows(self, part: LinearPart) -> Tensor:
        return _whole_blocks(part, self.quant_type.name, BLOCKS[self.quant_type].num_weights)

    def apply(self, state: PanelsState | BlocksProduct, x: Tensor) -> Tensor:
        return state.multiply(x)

    def apply_in_fp32(self, state: PanelsState | BlocksProduct, x: Tensor) -> Tensor:
        if isinstance(state, PanelsState):
            return state.multiply(x, fp32_out=True)
        return state.multiply_in_fp32(x)

    def lends_rows(self, device: str) -> bool:
        return device == "cpu"

    def row_lookup(
        self, state: PanelsState | BlocksProduct, dtype: torch.dtype
    ) -> RowLookup | None:
        if not isinstance(state, PanelsState):
            return None
        return row_lookup(state.panels, dtype)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        of_device = PANEL_FORMATS if self.device == "cpu" else BLOCKS
        return of_device[self.quant_type].bits_per_weight

    @property
    def takes_plain_weights(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class GgufFloat4Method(Float4Method):
    """MXFP4 weights. A block has an exponent plus 127, and 16 bytes with numbers i and i + 16."""

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        shape = (out_features, in_features // BLOCK * (1 + BLOCK // 2))
        weight = TensorSpec(shape=shape, out_axis=0, in_axis=1, dtypes=(torch.uint8,))
        return {"weight": weight} | bias_tensors(out_features, has_bias)

    def weight(self, part: LinearPart) -> Float4Weight:
        rows = _whole_blocks(part, "MXFP4", BLOCK)
        blocks = rows.view(len(rows), -1, 1 + BLOCK // 2)
        numbers = torch.cat((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), 2).flatten(1)
        packed = numbers[:, ::2] | numbers[:, 1::2] << 4
        return Float4Weight(packed, powers_of_two(part.name(0, "weight"), blocks[..., 0]))


def _whole_blocks(part: LinearPart, kind: str, block: int) -> Tensor:
    """The rows of a weight, which must have whole blocks of that many numbers."""
    if part.in_features % block:
        num_blocks = (part.total_inputs or part.in_features) // block
        raise ModelLoadError(
            f"a rank's {part.in_features} input features of type {kind} cannot be divided into "
            f"whole blocks of {block}; use a tensor_parallel_size that divides {num_blocks}, or "
            f"set quantization to none"
        )
    return part.concatenated_as_loaded("weight")


class GgufFormat(StoredFormat):
    """GGUF matrices of the types that kernels can multiply; a reader unpacks the others."""

    unpacked_by_reader = True
    int8_activations: ClassVar[bool] = False

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        """Detect the format by the tensors' types, since such a file has no other sign."""
        found = cls()
        return found if found.layers(headers) else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return {
            name.removesuffix(".weight"): QuantizedLayer(method, *header.shape)
            for name, header in headers.items()
            if name.endswith(".weight")
            and len(header.shape) == 2
            and (method := self._method(header.type, device)) is not None
        }

    def _method(self, kind: str, device: str) -> GgufMethod | GgufFloat4Method | None:
        if kind == "MXFP4":
            return GgufFloat4Method(device=device)
        known = GGUFType.__members__.get(kind)
        return None if known is None else GgufMethod(known, self.int8_activations, device)

    def is_slower_packed(self, layers: Mapping[str, QuantizedLayer], dtype: torch.dtype) -> bool:
        """Whether plain weights are faster; measured unless it is known."""
        num_weights = Counter[GGUFType]()
        for layer in layers.values():
            if isinstance(layer.method, GgufMethod):
                num_weights[layer.method.quant_type] += layer.out_features * layer.in_features
        return bool(num_weights) and are_panels_slower(num_weights, dtype)


class GgufInt8Format(GgufFormat):
    """GGUF's weights with activations in 8-bit integers. For CPUs."""

    int8_activations = True
