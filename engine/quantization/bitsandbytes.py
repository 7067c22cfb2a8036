"""Weights of 4 and 8 bits by bitsandbytes, quantised when they are loaded.

Papers: LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339; NF4, Dettmers et al. 2023,
arXiv:2305.14314.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.quantization.bitsandbytes_library import import_bitsandbytes
from engine.quantization.format import LoadFormat
from engine.quantization.method import LinearMethod, LinearPart

_INT8_OUTLIERS = 6.0
"""Activations beyond it are multiplied in full precision; the paper's value."""
_NF4_IN, _NF4_OUT = 64, 32
"""A layer's sizes must be multiples of these, or it stays as it is: bitsandbytes' kernels for the
CPU pack whole blocks."""
_NF4_BLOCK, _NF4_BLOCKS_OF_SCALES = 64, 256
"""Weights that share a scale of one byte, and scales that share one of four."""


class BitsandbytesMethod(LinearMethod[nn.Module]):
    """What is kept is a layer of the library's."""

    __slots__ = ()

    def process(self, part: LinearPart) -> nn.Module:
        weight = part.concatenated_as_loaded("weight").to(part.dtype)
        return self._quantised(weight, part.bias(), part.device)

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        return self._quantised(weight, bias, weight.device)

    def _quantised(self, weight: Tensor, bias: Tensor | None, device: torch.device) -> nn.Module:
        """Quantised when it is moved from the CPU to a device, the CPU included."""
        layer = self._layer(weight.cpu(), has_bias=bias is not None)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        layer.requires_grad_(False)
        return layer.to(device)

    @abstractmethod
    def _layer(self, weight: Tensor, *, has_bias: bool) -> nn.Module:
        """With a weight [out, in] that is still to be quantised."""

    def apply(self, state: nn.Module, x: Tensor) -> Tensor:
        product: Tensor = state(x)
        return product

    def module(self, state: nn.Module, in_features: int, out_features: int) -> nn.Module:
        """The library's: models may look at its weight's dtype."""
        return state


@dataclass(frozen=True, slots=True)
class Nf4Method(BitsandbytesMethod):
    """64 weights share a scale, which is one of 256 that share another one."""

    def _layer(self, weight: Tensor, *, has_bias: bool) -> nn.Module:
        library = import_bitsandbytes()
        layer: nn.Module = library.nn.Linear4bit(
            weight.shape[1], weight.shape[0], has_bias, compute_dtype=weight.dtype, quant_type="nf4"
        )
        layer.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        return layer

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return 4 + (8 + 32 / _NF4_BLOCKS_OF_SCALES) / _NF4_BLOCK

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """A constant kilobyte of tables is left out."""
        count = out_features * in_features
        num_scales = math.ceil(count / _NF4_BLOCK)
        return count // 2 + num_scales + 4 * math.ceil(num_scales / _NF4_BLOCKS_OF_SCALES)


@dataclass(frozen=True, slots=True)
class LlmInt8Method(BitsandbytesMethod):
    """The weights of an output share a scale."""

    def _layer(self, weight: Tensor, *, has_bias: bool) -> nn.Module:
        library = import_bitsandbytes()
        layer: nn.Module = library.nn.Linear8bitLt(
            weight.shape[1],
            weight.shape[0],
            has_bias,
            has_fp16_weights=False,
            threshold=_INT8_OUTLIERS,
        )
        layer.weight = library.nn.Int8Params(weight, requires_grad=False)
        return layer

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return 8

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        """With a scale per output."""
        return out_features * in_features + 4 * out_features


class BitsandbytesFormat(LoadFormat):
    """Of the library."""

    def check_package(self) -> None:
        import_bitsandbytes()


class Nf4Format(BitsandbytesFormat):
    """For layers that divide into blocks."""

    def method_for(self, out_features: int, in_features: int) -> Nf4Method | None:
        divides = in_features % _NF4_IN == 0 and out_features % _NF4_OUT == 0
        return Nf4Method() if divides else None


class LlmInt8Format(BitsandbytesFormat):
    """For all layers."""

    def method_for(self, out_features: int, in_features: int) -> LlmInt8Method:
        return LlmInt8Method()
