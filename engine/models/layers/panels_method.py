"""What linear layers with 8-bit integer arithmetic share."""

from abc import abstractmethod

from torch import Tensor

from engine.models.layers.linear_method import LinearMethod, LinearPart
from kernels import linear_panels


class PanelsMethod(LinearMethod):
    """Multiplies by `part.panels`: weights of few bits, activations rounded to 8."""

    __slots__ = ()

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """In memory, scales included."""

    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        assert part.panels is not None
        return linear_panels(x, part.panels, part.tensors.get("bias"))

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        assert part.panels is not None
        return linear_panels(x, part.panels, part.tensors.get("bias"), fp32_out=True)

    @staticmethod
    def keep_bias(part: LinearPart) -> None:
        """The kernel adds it to its fp32 sums."""
        if part.has_bias:
            part.tensors["bias"] = part.concatenated("bias").float()
