"""The definition, from the original weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.conv3x3.convolution import Convolution


def conv3x3(
    x: Tensor,
    convolution: Convolution,
    addend: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `kernels.conv3x3`."""
    bias, slopes = (
        numbers[: convolution.num_outputs] for numbers in (convolution.bias, convolution.slopes)
    )
    y = F.conv2d(x, convolution.weight, bias, padding=1)
    y = torch.where(y < 0, slopes[:, None, None] * y, y)
    if addend is not None:
        y = addend + scale * y
    if out is None:
        return y.contiguous(memory_format=torch.channels_last)
    return out.copy_(y)
