"""The definition, in fp32."""

import torch
from torch import Tensor

from kernels.linear_w4a16.layouts import unpack

SYMMETRIC_ZERO = 8


def linear_w4a16(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `kernels.linear_w4a16`."""
    out = x.float() @ dequantize(qweight, scales, zeros, group_size, g_idx)
    return (out if bias is None else out + bias.float()).to(x.dtype)


def dequantize(
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None,
) -> Tensor:
    """Dequantise the weight to [K, N] fp32."""
    q = unpack(qweight)
    if g_idx is None:
        g_idx = torch.arange(q.shape[0], device=q.device) // group_size
    zero = SYMMETRIC_ZERO if zeros is None else zeros[g_idx].int()
    return (q - zero) * scales[g_idx].float()
