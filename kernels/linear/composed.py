"""The vendor's library, which is the fastest."""

import torch.nn.functional as F
from torch import Tensor


def supports(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> bool:
    """Supports calls that need neither a fixed order of sums nor unrounded sums."""
    return not invariant and not fp32_out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> Tensor:
    """See `kernels.linear`."""
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
