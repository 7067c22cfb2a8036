"""Weights that are not quantised, either from the checkpoint or unpacked from its format."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.quantization.method import LinearMethod, LinearPart, RowLookup, TensorSpec
from kernels import PackedWeight, linear, linear_packed, native


@dataclass(frozen=True, slots=True)
class PlainState:
    """Plain or packed weights; packed ones replace the plain ones, so memory is not doubled."""

    weight: Tensor | PackedWeight
    bias: Tensor | None
    """The bias; fp32 beside packed weights."""


@dataclass(frozen=True, slots=True)
class UnquantizedMethod(LinearMethod[PlainState]):
    """Plain weights; on a CPU packed for the native kernel.

    With packed weights a row's result has the same bits whatever shares the step. Weights that are
    not packed have this property on request.
    """

    invariant: bool = False

    def process(self, part: LinearPart) -> PlainState:
        return self.arrange(part.concatenated("weight"), part.bias())

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> PlainState:
        if native.runs_on(weight):
            return PlainState(PackedWeight.pack(weight), None if bias is None else bias.float())
        return PlainState(weight, bias)

    def apply(self, state: PlainState, x: Tensor) -> Tensor:
        if isinstance(state.weight, PackedWeight):
            return linear_packed(x, state.weight, state.bias)
        return linear(x, state.weight, state.bias, invariant=self.invariant)

    def apply_in_fp32(self, state: PlainState, x: Tensor) -> Tensor:
        """Multiply in fp32, since bf16 logits between 16 and 32 are an eighth apart, so the best
        tokens would tie."""
        weight, bias = state.weight, state.bias
        if isinstance(weight, PackedWeight):
            return linear_packed(x, weight, bias, fp32_out=True)
        if self.invariant or _keeps_sums(x, weight):
            return linear(x, weight, bias, fp32_out=True, invariant=True)
        return linear(x, weight, bias).float()

    def row_lookup(self, state: PlainState, dtype: torch.dtype) -> RowLookup | None:
        return state.weight.row_lookup() if isinstance(state.weight, PackedWeight) else None

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return 8 * dtype_bytes


@dataclass(frozen=True, slots=True)
class UnpackingMethod(LinearMethod[Any]):
    """A method that takes the checkpoint's tensors of one format and keeps them by another method,
    layer by layer; a layer's plain weight exists only while it is loaded."""

    stored: LinearMethod[Any]
    kept: LinearMethod[Any]

    def tensors(self, in_features: int, out_features: int, has_bias: bool) -> dict[str, TensorSpec]:
        return self.stored.tensors(in_features, out_features, has_bias)

    def process(self, part: LinearPart) -> Any:
        weight = self.stored.dequantised(part)
        return self.kept.arrange(weight.to(part.dtype), part.bias())

    def apply(self, state: Any, x: Tensor) -> Tensor:
        return self.kept.apply(state, x)

    def apply_in_fp32(self, state: Any, x: Tensor) -> Tensor:
        return self.kept.apply_in_fp32(state, x)

    def dequantised(self, part: LinearPart) -> Tensor:
        return self.stored.dequantised(part)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return self.kept.bits_per_weight(dtype_bytes)

    def num_bytes(self, out_features: int, in_features: int, dtype_bytes: int) -> float:
        return self.kept.num_bytes(out_features, in_features, dtype_bytes)

    @property
    def takes_plain_weights(self) -> bool:
        return False


def _keeps_sums(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel returns the sums unrounded; the reference would convert the weight."""
    kernel = linear.implementations().get("triton")
    return kernel is not None and kernel.supports(x, weight, fp32_out=True, invariant=True)
