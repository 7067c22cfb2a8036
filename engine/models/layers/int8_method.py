"""Plain weights, rounded to 8 bits when they are loaded."""

from dataclasses import dataclass

from torch import Tensor

from engine.models.layers.linear_method import LinearPart
from engine.models.layers.panels_method import PanelsMethod
from kernels import panels_from_floats
from kernels.linear_panels.panels import BLOCK
from kernels.linear_panels.quantize import INT8


@dataclass(frozen=True, slots=True)
class Int8Method(PanelsMethod):
    """32 weights share a scale, and so do 32 activations. For CPUs."""

    def process_weights_after_loading(self, part: LinearPart) -> None:
        # In the dtype they came in: rounding to the layer's first would round twice.
        self.arrange(part, part.concatenated_as_loaded("weight"))
        self.keep_bias(part)

    def arrange(self, part: LinearPart, weight: Tensor) -> None:
        part.panels = panels_from_floats(weight)

    @property
    def int8_activations(self) -> bool:
        return True

    @property
    def bits_per_weight(self) -> float:
        return INT8.bits_per_weight

    @staticmethod
    def takes(in_features: int) -> bool:
        """Whether rows divide into whole groups."""
        return in_features % BLOCK == 0
