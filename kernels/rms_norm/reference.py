"""The definition, in fp32."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """Normalise the last dimension: `x / sqrt(mean(x²) + eps) * (offset + weight)`.

    Args:
        x: [..., C], any float dtype, any strides. Not changed.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.
        offset: added to the weights; Gemma stores them minus 1.

    Returns:
        [..., C], contiguous, x's dtype. Computed in fp32, rounded once. A row's result depends on
            the row alone.

    Paper: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    y = x.float()
    mean_square = y.pow(2).mean(-1, keepdim=True)
    return (y * torch.rsqrt(mean_square + eps) * (offset + weight.float())).to(x.dtype).contiguous()


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """Add a layer's output to the residual stream and normalise the sum.

    Args:
        x: [T, C], the layer's output. Not changed.
        residual: [T, C], same dtype. Mutated: becomes `residual + x`, rounded to its dtype.
        weight: [C]; fp32 or x's dtype.
        eps: added to the mean square.
        offset: added to the weights.

    Returns:
        [T, C]: `rms_norm` of the new residual after rounding.
    """
    residual.copy_(residual.float() + x.float())
    return rms_norm(residual, weight, eps, offset=offset)
