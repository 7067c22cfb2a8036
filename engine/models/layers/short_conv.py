"""The short convolution in front of a layer that keeps a state."""

import torch
from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.quantization.method import TensorSpec
from kernels import short_conv
from kernels.shared.recurrent_batch import RecurrentBatch


class ShortConv(nn.Module, WeightOwner):
    """A convolution over a few positions, one filter per channel, followed by SiLU."""

    weight: Tensor
    """[C, W] fp32."""
    bias: Tensor | None = None
    """[C] fp32."""

    def __init__(self, num_channels: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self._shape = (num_channels, width)
        self._has_bias = bias

    def forward(self, x: Tensor, inputs: Tensor, batch: RecurrentBatch) -> Tensor:
        """Map [T, C] to [T, C]; `inputs` are the last ones of each slot, [S, C, W - 1]."""
        return short_conv(x, self.weight, inputs, batch, bias=self.bias)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        num_channels, width = self._shape
        self.weight = torch.empty(self._shape, dtype=torch.float32, device=options.device)
        spec = TensorSpec(shape=(num_channels, 1, width))
        names = {"bias": "bias"} if self._has_bias else {}
        return {
            f"{path}.weight": WeightSlot(spec, self._fill),
            **fp32_slots(self, path, names, (num_channels,), options),
        }

    def _fill(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor[:, 0])
