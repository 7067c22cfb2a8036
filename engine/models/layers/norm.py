"""Normalisation with its learned scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import TensorSpec
from kernels import add_rms_norm, rms_norm


class RmsNorm(nn.Module, WeightOwner):
    """Over the last dimension, of `size` elements.

    Args:
        offset: added to the checkpoint's weights: some families keep them minus 1.
    """

    weight: Tensor

    def __init__(self, size: int, eps: float, *, offset: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C], contiguous."""
        return rms_norm(x, self.weight, self.eps)

    __call__ = forward

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add `x` to the residual stream, in place, and normalise the sum. Both [T, C]."""
        return add_rms_norm(x, residual, self.weight, self.eps)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        # On a CPU in fp32, as the kernel computes: other dtypes would be converted in every call.
        # With an offset everywhere: a sum of 16 bits would lose the last bits of its small part.
        is_fp32 = options.device.type == "cpu" or self.offset != 0.0
        dtype = torch.float32 if is_fp32 else options.dtype
        self.weight = torch.empty(self.size, dtype=dtype, device=options.device)
        return {f"{path}.weight": WeightSlot(TensorSpec(shape=(self.size,)), self._fill)}

    def _fill(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)
        if self.offset:
            self.weight += self.offset


class LayerNorm(nn.Module, WeightOwner):
    """Over the last dimension, of `size` elements, with a learned shift.

    PyTorch's: it computes each row by itself, in an order that follows from `size`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        def create() -> Tensor:
            return torch.empty(self.size, dtype=options.dtype, device=options.device)

        self.weight, self.bias = create(), create()
        spec = TensorSpec(shape=(self.size,))
        return {
            f"{path}.weight": WeightSlot(spec, self._fill_weight),
            f"{path}.bias": WeightSlot(spec, self._fill_bias),
        }

    def _fill_weight(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)

    def _fill_bias(self, tensor: Tensor) -> None:
        self.bias.copy_(tensor)
