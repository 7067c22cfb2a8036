"""Linear layers and convolutions on a CPU: in fp32 their rows do not affect each other.

Small weights are arranged for our own products in fp32. Large ones, which keep the processor busy
with a single row, are multiplied by oneDNN, in fp32 with each row separately; so are large
convolutions of few cells, for which its own convolutions take up to seven times as long. On other
devices, in other dtypes and if gradients are wanted, the layers work as before.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from engine.diffusion.families import onednn
from engine.diffusion.families.rows import row_by_row
from kernels import PackedWeight, linear_packed, native

MOST_BYTES = 1 << 20
"""The most bytes of weights that are arranged, which takes a second copy."""
MOST_CELLS = 512
"""The most cells that a convolution of larger weights computes as one product: SD 1.5's deepest
layers. With more cells, copying each one's surroundings costs more than it saves."""


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
        return _product(x, self.weight, self.bias, self._packed)


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
        if not (is_plain(x, self.weight) or onednn.can_multiply(x, self.weight)):
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
        is_plain = convolution.groups == 1 and convolution.dilation == (1, 1)
        self._may_be_product = (
            is_plain
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
            and self.weight.nbytes > MOST_BYTES
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `[R, C, h, w]` to `[R, C', h', w']`."""
        if x.ndim != 4:
            return super().forward(x)
        return row_by_row(self._convolved, x, at_once=1 if is_plain(x, self.weight) else len(x))

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        if not (self._may_be_product and onednn.can_multiply(x, self.weight)):
            return super().forward(x)
        sizes = len(x), *map(self._num_places, (0, 1), x.shape[2:])
        if math.prod(sizes) > MOST_CELLS:
            return super().forward(x)
        down, across = map(int, self.padding)
        around = F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down))
        for axis in (0, 1):
            around = around.unfold(1 + axis, self.kernel_size[axis], self.stride[axis])
        cells = around.permute(0, 1, 2, 4, 5, 3).reshape(math.prod(sizes), -1)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        product = onednn.multiply(cells, weight, self.bias)
        return product.view(*sizes, -1).permute(0, 3, 1, 2)

    def _num_places(self, axis: int, length: int) -> int:
        """How many places the kernel takes along an axis of a map."""
        room = length + 2 * int(self.padding[axis]) - self.kernel_size[axis]
        return room // self.stride[axis] + 1


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
    if not is_plain(x, weight):
        return onednn.linear(x, weight, bias)
    if packed is not None:
        rows = x.reshape(-1, x.shape[-1])
        return linear_packed(rows, packed, bias).view(*x.shape[:-1], packed.out_features)
    if x.ndim == 1:
        return onednn.linear(x, weight, bias)
    return row_by_row(lambda row: onednn.linear(row, weight, bias), x)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    ones = (layer.kernel_size, layer.stride, layer.dilation)
    is_plain = all(one == (1, 1) for one in ones) and layer.padding == (0, 0)
    return is_plain and layer.groups == 1
