"""RMS normalisation with its learned scale."""

import torch
from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from kernels import add_rms_norm, rms_norm


class RmsNorm(nn.Module, WeightOwner):
    """Over the last dimension, of `size` elements."""

    weight: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C], contiguous."""
        return rms_norm(x, self.weight, self.eps)

    __call__ = forward

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add `x` to the residual stream, in place, and normalise the sum. Both [T, C]."""
        return add_rms_norm(x, residual, self.weight, self.eps)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        # On a CPU in fp32, as the kernel computes: other dtypes would be converted in every call.
        dtype = torch.float32 if options.device.type == "cpu" else options.dtype
        self.weight = torch.empty(self.size, dtype=dtype, device=options.device)
        return {f"{path}.weight": WeightSlot((self.size,), lambda t: _fill(self.weight, t))}


def _fill(weight: Tensor, tensor: Tensor) -> None:
    weight.copy_(tensor)
