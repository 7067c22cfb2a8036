"""Linear layers and convolutions of single cells as plain matrix products, for fp32 on a CPU.

There torch copies a bias to each row before it multiplies, which takes a third as long as the
product, and oneDNN arranges a convolution's weights anew in each call. Elsewhere, and in other
dtypes, the layers are what they were.
"""

import torch
import torch.nn.functional as F
from torch import nn


def simplify_products(model: nn.Module) -> None:
    """Replace the layers that are of torch's own kinds, in place; weights and names stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.bias is not None:
                setattr(module, name, BiasedProduct(child))
            elif type(child) is nn.Conv2d and _is_pointwise(child):
                setattr(module, name, PointwiseConvolution(child))


class BiasedProduct(nn.Linear):
    """`linear`, whose weights it takes: the bias is added to what was multiplied."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        if is_plain(x, self.weight):
            return F.linear(x, self.weight).add_(self.bias)
        return super().forward(x)


class PointwiseConvolution(nn.Conv2d):
    """A convolution of single cells, whose weights it takes; in fp32 it makes maps with channels
    last."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        channels = convolution.in_channels, convolution.out_channels
        has_bias = convolution.bias is not None
        super().__init__(*channels, kernel_size=1, bias=has_bias, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[R, C, h, w]` to `[R, C', h, w]`."""
        if not is_plain(x, self.weight):
            return super().forward(x)
        # diffusers' transformers lay out otherwise what they give to their last layer.
        x = x.contiguous(memory_format=torch.channels_last)
        product = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1))
        if self.bias is not None:
            product.add_(self.bias)
        return product.permute(0, 3, 1, 2)


def is_plain(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether these are multiplied in fp32 on a CPU, and no gradients are wanted."""
    return x.is_cpu and x.dtype is weight.dtype is torch.float32 and not torch.is_grad_enabled()


def _is_pointwise(layer: nn.Conv2d) -> bool:
    ones = (layer.kernel_size, layer.stride, layer.dilation)
    is_plain = all(one == (1, 1) for one in ones) and layer.padding == (0, 0)
    return is_plain and layer.groups == 1
