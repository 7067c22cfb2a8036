"""Weights of 4-bit floats (E2M1) in blocks of 32 that share a power of two (MXFP4).

A layer has `blocks` [N, K / 32, 16], two numbers to a byte, the first in the lower half, and
`scales` [N, K / 32], exponents plus 127. On a CPU weights are rearranged into panels
(`kernels.linear_panels`), which hold the same numbers; elsewhere they are unpacked.

Paper: OCP Microscaling Formats, Rouhani et al. 2023, arXiv:2310.10537.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from engine.errors import ShapeMismatch
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.int4_groups import GroupPanels, check_finite, takes_panels
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from engine.quantization.panels import PanelsState
from engine.quantization.products import PlainProduct, Product, ProductMethod
from kernels.linear_panels.formats import E2M1
from kernels.linear_panels.panels import BLOCK, Codes, pack_in_parts

_SCALES = torch.tensor(
    [2.0 ** (exponent - 127) for exponent in range(255)] + [torch.nan], dtype=torch.float32
)
"""The factor that each stored exponent stands for."""


@dataclass(frozen=True, slots=True)
class Mxfp4Method(ProductMethod):
    """Weights that are arranged in panels, or unpacked where there are none."""

    @property
    def takes_plain_weights(self) -> bool:
        return False

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        shape, dtypes = (out_features, in_features // BLOCK), (torch.uint8,)
        return {
            "blocks": TensorSpec(shape=(*shape, BLOCK // 2), out_axis=0, in_axis=1, dtypes=dtypes),
            "scales": TensorSpec(shape=shape, out_axis=0, in_axis=1, dtypes=dtypes),
        } | bias_tensors(out_features, has_bias)

    def process(self, part: LinearPart) -> Product:
        bias = part.bias()
        if part.device.type != "cpu" or not takes_panels():
            return PlainProduct.of(self.dequantised(part), bias)
        packed, scales = _loaded(part)

        def codes_of(some: slice) -> Codes:
            return _codes(packed[some], scales[some])

        panels = pack_in_parts(len(packed), part.in_features, codes_of)
        return GroupPanels(PanelsState.of(panels, bias), None)

    def dequantised(self, part: LinearPart) -> Tensor:
        return _codes(*_loaded(part)).dequantised().to(part.device, part.dtype)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return E2M1.bits_per_weight if takes_panels() else 8 * dtype_bytes


class Mxfp4Format(StoredFormat):
    """MXFP4 checkpoints, detected by `quant_method`; tensors tell which layers are quantised."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls() if config.get("quant_method") == "mxfp4" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return {
            name.removesuffix(".blocks"): _layer(name, header.shape)
            for name, header in headers.items()
            if name.endswith(".blocks")
        }


def _layer(name: str, shape: tuple[int, ...]) -> QuantizedLayer:
    if len(shape) != 3 or not all(shape) or shape[2] != BLOCK // 2:
        raise ShapeMismatch(
            f"{name} has shape {shape}; it must be outputs, blocks of {BLOCK} inputs and "
            f"{BLOCK // 2} bytes"
        )
    return QuantizedLayer(Mxfp4Method(), shape[0], shape[1] * BLOCK)


def _loaded(part: LinearPart) -> tuple[Tensor, Tensor]:
    """Return the packed numbers and the fp32 scales of all shards, outputs first."""
    scales = [_SCALES[exponents.int()] for exponents in part.shards("scales")]
    for shard, one in enumerate(scales):
        check_finite(part.name(shard, "scales"), one)
    return torch.cat(part.shards("blocks")), torch.cat(scales)


def _codes(packed: Tensor, scales: Tensor) -> Codes:
    codes = torch.stack([packed & 15, packed >> 4], 3).flatten(1)
    return Codes(format=E2M1, codes=codes, scales=scales)
