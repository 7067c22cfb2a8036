"""The states that methods keep for a layer: weights of some form, which can multiply."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.quantization.method import LinearMethod
from engine.quantization.plain import PlainState, UnquantizedMethod
from kernels import GGUFType, linear_gguf, linear_w8

_PLAIN = UnquantizedMethod(invariant=True)


class Product(Protocol):
    """Weights [N, K], with a bias if there is one."""

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply [T, K] → [T, N] in x's dtype."""

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        """Multiply in fp32, for logits."""


@dataclass(frozen=True, slots=True)
class ProductMethod(LinearMethod[Product]):
    """A method whose state multiplies by itself."""

    def apply(self, state: Product, x: Tensor) -> Tensor:
        return state.multiply(x)

    def apply_in_fp32(self, state: Product, x: Tensor) -> Tensor:
        return state.multiply_in_fp32(x)


@dataclass(frozen=True, slots=True)
class PlainProduct:
    """Unpacked weights, of sizes that the kernels of their format do not take."""

    state: PlainState

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "PlainProduct":
        """Build the product from a weight on its device, in the dtype of activations."""
        return cls(_PLAIN.arrange(weight, None if bias is None else bias.to(weight.dtype)))

    def multiply(self, x: Tensor) -> Tensor:
        return _PLAIN.apply(self.state, x)

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return _PLAIN.apply_in_fp32(self.state, x)


@dataclass(frozen=True, slots=True)
class RowScaledProduct:
    """Weights of one byte with one scale per output; see `kernels.linear_w8`."""

    weight: Tensor
    """[N, K] int8."""
    scale: Tensor
    """[N] fp32."""
    bias: Tensor | None

    def multiply(self, x: Tensor) -> Tensor:
        return linear_w8(x, self.weight, self.scale, self.bias)

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.multiply(x.float())


@dataclass(frozen=True, slots=True)
class BlocksProduct:
    """Rows of one of GGUF's types, with their fields apart; see `kernels.linear_gguf`."""

    rows: Tensor
    quant_type: GGUFType
    bias: Tensor | None
    """fp32."""
    order: Tensor | None = None
    """[K], the input that lies at each place; None if each lies at its own."""

    def multiply(self, x: Tensor) -> Tensor:
        ordered = x if self.order is None else x.index_select(1, self.order)
        return linear_gguf(ordered, self.rows, self.quant_type, self.bias)

    def multiply_in_fp32(self, x: Tensor) -> Tensor:
        return self.multiply(x.float())


def fp32_bias(bias: Tensor | None) -> Tensor | None:
    """Convert a bias to fp32, in which kernels add it to their sums."""
    return None if bias is None else bias.to(torch.float32)
