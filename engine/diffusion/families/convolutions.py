"""3x3 convolutions with Winograd's method, for fp32 on a CPU: a quarter of the multiplications.

PyTorch's library lacks it. The weights are arranged for it once, in a second copy of four times
their memory; `decisions/003` has the measured gain. On other devices, in other dtypes and if
gradients are wanted, the layers work as before.
"""

import torch
from torch import nn

from engine.diffusion.families.products import is_plain
from kernels import Convolution, conv3x3, native

LEAST_CHANNELS = 16
"""The least number of inputs and outputs; smaller numbers would be padded with zeros."""
MOST_BYTES = 30 << 20
"""The most bytes of a layer's arranged weights: from 640 to 320 channels. The wider layers of large
models would take gigabytes together and work on the smallest maps."""


def arrange_convolutions(model: nn.Module) -> None:
    """Replace the layers that are faster this way, in place; weights and names stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _is_for_winograd(child) and native.missing() is None:
                setattr(module, name, ArrangedConvolution(child))


def arranged_bytes(shape: tuple[int, ...]) -> int:
    """The extra memory, in fp32 on a CPU, of a layer whose weights have this shape."""
    return Convolution.num_bytes(*shape[:2]) if _is_worth_it(shape) else 0


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
        if is_plain(x, self.weight):
            return conv3x3(x, self.arranged)
        return super().forward(x)


def _is_for_winograd(layer: nn.Conv2d) -> bool:
    weight = layer.weight
    ones = (layer.stride, layer.padding, layer.dilation)
    is_usual = all(one == (1, 1) for one in ones) and layer.padding_mode == "zeros"
    is_fp32 = weight.is_cpu and weight.dtype is torch.float32
    return is_usual and is_fp32 and layer.groups == 1 and _is_worth_it(tuple(weight.shape))


def _is_worth_it(shape: tuple[int, ...]) -> bool:
    """Whether weights `[C', C, 3, 3]` should be arranged."""
    if len(shape) != 4 or shape[2:] != (3, 3):
        return False
    channels = shape[:2]
    return min(channels) >= LEAST_CHANNELS and Convolution.num_bytes(*channels) <= MOST_BYTES
