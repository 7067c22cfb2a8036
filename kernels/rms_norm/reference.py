"""The definition, in fp32."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See `kernels.rms_norm`."""
    y = x.float()
    mean_square = y.pow(2).mean(-1, keepdim=True)
    return (y * torch.rsqrt(mean_square + eps) * (offset + weight.float())).to(x.dtype).contiguous()


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """See `kernels.rms_norm`."""
    residual.copy_(residual.float() + x.float())
    return rms_norm(residual, weight, eps, offset=offset)
