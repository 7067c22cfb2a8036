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
    """Convolve zero-padded maps, apply slopes, and add the addend.

    Args:
        x: [R, C, H, W], fp32 or bf16 like the weights, fastest where a cell's channels lie side by
            side: channels-last layout, or some channels of a wider map in it.
        convolution: from C to N channels.
        addend: [R, N, H, W]; the result is `addend + scale * convolved`.
        out: [R, N, H, W], with the same choice of layouts as x; written to. May be other channels
            of x's map.

    Returns:
        [R, N, H, W], `out` or a new map in channels-last layout. In the faster implementation a
            row's result depends on the row alone; cells that have the same surroundings but lie
            differently to multiples of 4 (2 in bf16) may differ by rounding.

    Papers: Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2015,
    arXiv:1509.09308, section 4.3.
    """
    bias, slopes = (
        numbers[: convolution.num_outputs] for numbers in (convolution.bias, convolution.slopes)
    )
    y = F.conv2d(x.float(), convolution.weight.float(), bias, padding=1)
    y = torch.where(y < 0, slopes[:, None, None] * y, y)
    if addend is not None:
        y = addend + scale * y
    if out is None:
        return y.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return out.copy_(y)
