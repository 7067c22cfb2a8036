"""What linear layers with weights in panels share."""

from abc import abstractmethod

from torch import Tensor

from engine.models.layers.linear_method import LinearMethod, LinearPart
from kernels import linear_panels


class PanelsMethod(LinearMethod):
    """Multiplies by `part.panels`, weights of few bits."""

    __slots__ = ()

    @property
    @abstractmethod
    def int8_activations(self) -> bool:
        """Whether to multiply in 8-bit integers; else in the layer's dtype."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """In memory, scales included."""

    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        return self._product(part, x)

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        return self._product(part, x, fp32_out=True)

    def _product(self, part: LinearPart, x: Tensor, *, fp32_out: bool = False) -> Tensor:
        assert part.panels is not None
        return linear_panels(
            x,
            part.panels,
            part.tensors.get("bias"),
            int8_activations=self.int8_activations,
            fp32_out=fp32_out,
        )

    @staticmethod
    def keep_bias(part: LinearPart) -> None:
        """The kernel adds it to its fp32 sums."""
        if part.has_bias:
            part.tensors["bias"] = part.concatenated("bias").float()
