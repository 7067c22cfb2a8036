"""Plain weights rounded to 8 or 4 bits in groups when they are loaded; activations are not rounded.

Each 32 inputs of an output share the numbers of one of GGUF's blocks: with 8 bits a scale (Q8_0),
with 4 bits a scale and a minimum (Q4_1). No data is used; formats fitted to data keep more of a
model's quality in 4 bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quantization.format import LoadFormat
from engine.quantization.gguf import GgufMethod
from engine.quantization.method import LinearMethod, LinearPart, TensorSpec
from engine.quantization.panels import PanelsState
from engine.quantization.products import BlocksProduct
from kernels import GGUFType
from kernels.linear_panels.panels import BLOCK, chunks


@dataclass(frozen=True, slots=True)
class RoundedMethod(GgufMethod):
    """Weights made from plain ones, then kept like those of a GGUF file."""

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        return LinearMethod.tensors(self, in_features, out_features, has_bias)

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> PanelsState | BlocksProduct:
        return self.keep(rounded(weight, self.quant_type), weight.device, bias)

    def dequantised(self, part: LinearPart) -> Tensor:
        return part.concatenated("weight")

    @property
    def takes_plain_weights(self) -> bool:
        return True

    def lends_rows(self, device: str) -> bool:
        return False

    def row_lookup(self, state: PanelsState | BlocksProduct, dtype: torch.dtype) -> None:
        """Return None, because the rounded rows differ from the plain weight's."""

    def _rows(self, part: LinearPart) -> Tensor:
        # In the dtype of the file: converting to the layer's dtype first would round twice.
        return rounded(part.concatenated_as_loaded("weight"), self.quant_type)


class Int8WeightsFormat(LoadFormat):
    """A format of 8 bits, for layers whose rows divide into whole groups."""

    def method_for(self, out_features: int, in_features: int) -> RoundedMethod | None:
        return RoundedMethod(GGUFType.Q8_0) if in_features % BLOCK == 0 else None


class Int4Format(LoadFormat):
    """A format of 4 bits; a text model's output layer has 8."""

    def method_for(self, out_features: int, in_features: int) -> RoundedMethod | None:
        return RoundedMethod(GGUFType.Q4_1) if in_features % BLOCK == 0 else None

    def output_method_for(self, out_features: int, in_features: int) -> RoundedMethod | None:
        return Int8WeightsFormat().method_for(out_features, in_features)


def rounded(weight: Tensor, quant_type: GGUFType) -> Tensor:
    """Round [N, K] of any float dtype to [N, bytes of a row] uint8, as llama.cpp rounds."""
    of_blocks = {GGUFType.Q8_0: _q8_0, GGUFType.Q4_1: _q4_1}[quant_type]
    parts = [
        of_blocks(weight[some].float().reshape(-1, BLOCK)).view(len(weight[some]), -1)
        for some in chunks(*weight.shape)
    ]
    return torch.cat(parts)


def _q8_0(blocks: Tensor) -> Tensor:
    scales = blocks.abs().amax(1, keepdim=True) / 127
    codes = _half_away(blocks * _inverse(scales)).to(torch.int8)
    return torch.cat([_fp16(scales), codes.view(torch.uint8)], 1)


def _q4_1(blocks: Tensor) -> Tensor:
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scales = (high - low) / 15
    codes = ((blocks - low) * _inverse(scales) + 0.5).floor_().clamp_(0, 15).to(torch.uint8)
    half = BLOCK // 2
    return torch.cat([_fp16(scales), _fp16(low), codes[:, :half] | codes[:, half:] << 4], 1)


def _inverse(scales: Tensor) -> Tensor:
    """Return reciprocals, with 0 for 0."""
    return torch.where(scales == 0, 0.0, scales.reciprocal())


def _half_away(numbers: Tensor) -> Tensor:
    """Round to the nearest integer, and halves away from zero."""
    return numbers.sign() * (numbers.abs() + 0.5).floor()


def _fp16(numbers: Tensor) -> Tensor:
    return numbers.to(torch.float16).view(torch.uint8)
