"""Weights in panels, as several formats keep them on a CPU."""

from dataclasses import dataclass

from torch import Tensor

from kernels import Panels, linear_panels


@dataclass(frozen=True, slots=True)
class PanelsState:
    """Weights of few bits, arranged for a CPU."""

    panels: Panels
    bias: Tensor | None
    """fp32: the kernel adds it to its sums."""

    @classmethod
    def of(cls, panels: Panels, bias: Tensor | None) -> "PanelsState":
        """With a bias of any float dtype."""
        return cls(panels, None if bias is None else bias.float())

    def multiply(
        self, x: Tensor, *, int8_activations: bool = False, fp32_out: bool = False
    ) -> Tensor:
        """[T, in] → [T, out]; see `kernels.linear_panels`."""
        return linear_panels(
            x, self.panels, self.bias, int8_activations=int8_activations, fp32_out=fp32_out
        )
