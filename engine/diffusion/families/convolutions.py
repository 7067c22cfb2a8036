"""3x3 convolutions with Winograd's method on a CPU: a quarter of the multiplications in fp32, and
less than half in bf16.

PyTorch's library lacks it. The weights are arranged for it once, in a second copy of four times
their memory, or 1.8 times in bf16; `decisions/003` has the measured gain. On other devices, in
other dtypes, in bf16 on processors whose convolutions are faster and if gradients are wanted, the
layers work as before.
"""

import torch
from torch import nn

from kernels import Convolution, conv3x3, isa, native

LEAST_CHANNELS = 16
"""The least number of inputs and outputs; smaller numbers would be padded with zeros."""
MOST_BYTES = {torch.float32: 30 << 20, torch.bfloat16: 60 << 20}
"""The most bytes of a layer's arranged weights: from 640 to 320 channels in fp32, from 1280 to 1280
in bf16. The wider layers of large models would take gigabytes together and work on the smallest
maps."""


def arrange_convolutions(model: nn.Module) -> None:
    """Replace the layers that are faster this way, in place; weights and names stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _is_for_winograd(child) and native.missing() is None:
                setattr(module, name, ArrangedConvolution(child))


def arranged_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The extra memory on a CPU of a layer whose weights have this shape; 0 if it stays as it
    is."""
    is_3x3 = len(shape) == 4 and shape[2:] == (3, 3)
    if dtype not in MOST_BYTES or not is_3x3 or min(shape[:2]) < LEAST_CHANNELS:
        return 0
    if dtype is torch.bfloat16 and (isa.multiplies_tiles() or not isa.multiplies_bf16()):
        return 0
    num_bytes = Convolution.num_bytes(shape[0], shape[1], dtype)
    return num_bytes if num_bytes <= MOST_BYTES[dtype] else 0


class ArrangedConvolution(nn.Conv2d):
    """A copy of `convolution` with its weights, for maps with channels last.

    A row's result depends only on the row.

    Attributes:
        arranged: the weights in our own operation's layout.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        channels = convolution.in_channels, convolution.out_channels
        has_bias = convolution.bias is not None
        super().__init__(*channels, kernel_size=3, padding=1, bias=has_bias, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias
        bias = torch.zeros(channels[1]) if self.bias is None else self.bias.data
        self.arranged = Convolution.of(self.weight.data, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `[R, C, h, w]` to `[R, C', h, w]`."""
        is_arranged = x.is_cpu and x.dtype is self.weight.dtype is self.arranged.weight.dtype
        if is_arranged and not torch.is_grad_enabled():
            return conv3x3(x, self.arranged)
        return super().forward(x)


def _is_for_winograd(layer: nn.Conv2d) -> bool:
    weight = layer.weight
    ones = (layer.stride, layer.padding, layer.dilation)
    is_usual = all(one == (1, 1) for one in ones) and layer.padding_mode == "zeros"
    is_worth_it = weight.is_cpu and arranged_bytes(tuple(weight.shape), weight.dtype) > 0
    return is_usual and layer.groups == 1 and is_worth_it
