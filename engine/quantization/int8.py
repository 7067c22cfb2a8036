"""Plain weights rounded to 8 bits when they are loaded, with activations rounded at each
product."""

from dataclasses import dataclass

from torch import Tensor

from engine.quantization.format import LoadFormat
from engine.quantization.method import LinearMethod, LinearPart
from engine.quantization.panels import PanelsState
from kernels import panels_from_floats
from kernels.linear_panels.panels import BLOCK
from kernels.linear_panels.quantize import INT8


@dataclass(frozen=True, slots=True)
class Int8Method(LinearMethod[PanelsState]):
    """A method in which 32 weights share a scale, and so do 32 activations. For CPUs."""

    def process(self, part: LinearPart) -> PanelsState:
        # In the dtype of the file: converting to the layer's dtype first would round twice.
        return self.arrange(part.concatenated_as_loaded("weight"), part.bias())

    def arrange(self, weight: Tensor, bias: Tensor | None = None) -> PanelsState:
        return PanelsState.of(panels_from_floats(weight), bias, int8_activations=True)

    def apply(self, state: PanelsState, x: Tensor) -> Tensor:
        return state.multiply(x)

    def apply_in_fp32(self, state: PanelsState, x: Tensor) -> Tensor:
        return state.multiply(x, fp32_out=True)

    def bits_per_weight(self, dtype_bytes: int) -> float:
        return INT8.bits_per_weight


class Int8Format(LoadFormat):
    """A format for layers whose rows divide into whole groups."""

    def method_for(self, out_features: int, in_features: int) -> Int8Method | None:
        return Int8Method() if in_features % BLOCK == 0 else None
