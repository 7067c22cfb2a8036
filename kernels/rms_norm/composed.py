"""The fewest PyTorch kernels: `F.rms_norm` is not fused on a CPU and runs ten of them.

On CUDA `F.rms_norm` is one kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See `kernels.rms_norm`."""
    if x.is_cuda:
        # Rounds the weight and its offset first, which then costs nothing else.
        scale = weight if offset == 0.0 else weight.float() + offset
        return F.rms_norm(x, weight.shape, scale.to(x.dtype), eps)
    y = x.float()
    scale = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    scale = scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    # `float()` of an fp32 input is the input itself, which must not change.
    y = y * scale if y is x else y.mul_(scale)
    return y.mul_(weight if offset == 0.0 else weight.float() + offset).to(x.dtype).contiguous()


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """See `kernels.rms_norm`."""
    return rms_norm(residual.add_(x), weight, eps, offset=offset)
