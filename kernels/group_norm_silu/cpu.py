"""The norm in C++: PyTorch's takes most of its time for layout and type conversions."""

import functools

import torch
from torch import Tensor

from kernels import native


def supports(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> bool:
    """Supports CPU tensors; maps in other layouts are copied to channels-last."""
    return native.runs_on(x, weight, bias) and weight.is_contiguous() and bias.is_contiguous()


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> Tensor:
    """See `kernels.group_norm_silu`."""
    rows, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        rows,
        height * width,
        channels,
        num_groups,
        eps,
        silu,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_group_norm_silu", "ippppiiiifi")
