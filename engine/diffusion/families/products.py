"""Linear layers and convolutions whose rows do not affect each other, for fp32 on a CPU.

Small weights are arranged for our own products. Large ones, which keep the processor busy with a
single row, are multiplied with each row separately. On other devices, in other dtypes and if
gradients are wanted, the layers work as before.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine.diffusion.families.rows import row_by_row
from kernels import PackedWeight, linear_packed, native

MOST_BYTES = 1 << 20
"""The most bytes of weights that are arranged, which takes a second copy."""


def separate_rows(model: nn.Module) -> None:
    """Replace layers of torch's own classes, in place; weights and names stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, RowProduct(child))
            elif type(child) is nn.Conv2d and _is_pointwise(child):
                setattr(module, name, PointwiseConvolution(child))
            elif type(child) is nn.Conv2d:
                setattr(module, name, RowConvolution(child))


def packed_bytes(shape: tuple[int, ...]) -> int:
    """The extra memory, in fp32 on a CPU, of a layer whose weights have this shape."""
    is_product = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    num_bytes = 4 * shape[0] * shape[1] if is_product else MOST_BYTES + 1
    return num_bytes if num_bytes <= MOST_BYTES else 0


class RowProduct(nn.Linear):
    """A copy of `linear` with its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        sizes = linear.in_features, linear.out_features
        super().__init__(*sizes, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._packed = _packed(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply `[R, ..., in]` to `[R, ..., out]`."""
        if is_plain(x, self.weight):
            return _product(x, self.weight, self.bias, self._packed)
        return super().forward(x)


class PointwiseConvolution(nn.Conv2d):
    """A copy of a convolution of single cells with its weights; in fp32 its maps have channels
    last."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        channels = convolution.in_channels, convolution.out_channels
        has_bias = convolution.bias is not None
        super().__init__(*channels, kernel_size=1, bias=has_bias, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias
        self._packed = _packed(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `[R, C, h, w]` to `[R, C', h, w]`."""
        if not is_plain(x, self.weight):
            return super().forward(x)
        # diffusers' transformers give their last layer another memory layout.
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return _product(x, self.weight.flatten(1), self.bias, self._packed).permute(0, 3, 1, 2)


class RowConvolution(nn.Conv2d):
    """A copy of any other convolution with its weights."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            bias=convolution.bias is not None,
            padding_mode=convolution.padding_mode,
            device="meta",
        )
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `[R, C, h, w]` to `[R, C', h', w']`."""
        if is_plain(x, self.weight) and x.ndim == 4:
            return row_by_row(super().forward, x)
        return super().forward(x)


def is_plain(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both are in fp32 on a CPU and no gradients are wanted."""
    return x.is_cpu and x.dtype is weight.dtype is torch.float32 and not torch.is_grad_enabled()


def _packed(weight: torch.Tensor) -> PackedWeight | None:
    is_fp32 = weight.is_cpu and weight.dtype is torch.float32
    if not is_fp32 or not packed_bytes(tuple(weight.shape)) or native.missing() is not None:
        return None
    return PackedWeight.pack(weight.data.flatten(1))


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    packed: PackedWeight | None,
) -> torch.Tensor:
    if packed is not None:
        rows = x.reshape(-1, x.shape[-1])
        return linear_packed(rows, packed, bias).view(*x.shape[:-1], packed.out_features)
    if x.ndim == 1:
        return F.linear(x, weight, bias)
    product = row_by_row(lambda row: F.linear(row, weight), x)
    return product if bias is None else product.add_(bias)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    ones = (layer.kernel_size, layer.stride, layer.dilation)
    is_plain = all(one == (1, 1) for one in ones) and layer.padding == (0, 0)
    return is_plain and layer.groups == 1
