"""The definition, in fp32."""

import torch
from torch import Tensor


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> Tensor:
    """Normalise each group of channels over the whole map to zero mean and unit variance.

    Args:
        x: [R, C, H, W], any float dtype, fastest in channels-last layout. Not changed.
        num_groups: divides C.
        weight, bias: [C], x's dtype.
        eps: added to the variance.
        silu: whether `y * sigmoid(y)` follows.

    Returns:
        [R, C, H, W], x's dtype; in x's layout or channels-last. Computed in fp32, rounded once. In
            the faster implementations a row's result depends on the row alone.

    Papers: Wu and He 2018, arXiv:1803.08494; Elfwing et al. 2017, arXiv:1702.03118.
    """
    grouped = x.float().reshape(x.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, correction=0)
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).view(x.shape)
    y = y * weight.float()[:, None, None] + bias.float()[:, None, None]
    if silu:
        y = y * torch.sigmoid(y)
    return torch.empty_like(x).copy_(y)
