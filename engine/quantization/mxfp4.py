"""Checkpoints in MXFP4, as GPT-OSS has it: 4-bit floats in blocks of 32 that share a power of two.

A layer has `blocks` [N, K / 32, 16], two numbers to a byte, the first in the lower half, and
`scales` [N, K / 32], exponents plus 127.

Paper: OCP Microscaling Formats, Rouhani et al. 2023, arXiv:2310.10537.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from engine.errors import ShapeMismatch
from engine.quantization.float4_groups import Float4Method, Float4Weight, powers_of_two
from engine.quantization.format import Headers, QuantizedLayer, StoredFormat
from engine.quantization.method import LinearPart, TensorSpec, bias_tensors
from kernels.linear_panels.panels import BLOCK


@dataclass(frozen=True, slots=True)
class Mxfp4Method(Float4Method):
    """Weights that are arranged in panels, or unpacked where there are none."""

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        shape, dtypes = (out_features, in_features // BLOCK), (torch.uint8,)
        return {
            "blocks": TensorSpec(shape=(*shape, BLOCK // 2), out_axis=0, in_axis=1, dtypes=dtypes),
            "scales": TensorSpec(shape=shape, out_axis=0, in_axis=1, dtypes=dtypes),
        } | bias_tensors(out_features, has_bias)

    def weight(self, part: LinearPart) -> Float4Weight:
        scales = [
            powers_of_two(part.name(shard, "scales"), exponents)
            for shard, exponents in enumerate(part.shards("scales"))
        ]
        return Float4Weight(torch.cat(part.shards("blocks")).flatten(1), torch.cat(scales))


class Mxfp4Format(StoredFormat):
    """MXFP4 checkpoints, detected by `quant_method`; tensors tell which layers are quantised."""

    @classmethod
    def detect(cls, config: Mapping[str, Any], headers: Headers) -> Self | None:
        return cls() if config.get("quant_method") == "mxfp4" else None

    def layers(self, headers: Headers, device: str = "cpu") -> dict[str, QuantizedLayer]:
        return {
            name.removesuffix(".blocks"): _layer(name, header.shape, device)
            for name, header in headers.items()
            if name.endswith(".blocks")
        }


def _layer(name: str, shape: tuple[int, ...], device: str) -> QuantizedLayer:
    if len(shape) != 3 or not all(shape) or shape[2] != BLOCK // 2:
        raise ShapeMismatch(
            f"{name} has shape {shape}; it must be outputs, blocks of {BLOCK} inputs and "
            f"{BLOCK // 2} bytes"
        )
    return QuantizedLayer(Mxfp4Method(device=device), shape[0], shape[1] * BLOCK)
