"""The rounding of activations to 16-bit integers for processors with dot products of integers."""

import torch
from torch import Tensor

MOST = 127 * 256 + 127
"""The largest integer: 256 times a signed byte plus another one, which can also be negated."""
_SMALLEST_EXPONENT = -100
"""The least exponent of a group's largest magnitude; below it, numbers gradually become zeros."""


def round_to_int16(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Round each `group_size` elements of a row by the largest magnitude among them.

    The scale is a power of two, the smallest for which no integer is beyond `MOST`. So a bf16
    number that is at least 1/64 of the largest is exact; others lose at most half the scale. Halves
    are rounded to even.

    Args:
        x: [M, K], any float dtype. K is a multiple of `group_size`.

    Returns:
        q: [M, K / group_size, group_size] int32 in -MOST ... MOST.
        scale: [M, K / group_size, 1] fp32; `q * scale` approximates x. A group that is not finite
            has zeros and the scale NaN.
    """
    groups = x.float().reshape(x.shape[0], x.shape[1] // group_size, group_size)
    largest = groups.abs().amax(-1, keepdim=True)
    finite = largest.isfinite()
    # largest = mantissa * 2^exponent, 0.5 <= mantissa < 1
    _, exponent = torch.frexp(largest.where(finite, largest.new_zeros(())))
    exponent = exponent.clamp(min=_SMALLEST_EXPONENT + 1) - 15
    scaled_largest = torch.ldexp(largest.double(), -exponent)
    exponent = exponent + (scaled_largest > MOST).int()
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    q = torch.where(finite, torch.ldexp(groups.double(), -exponent).round(), 0.0)
    return q.to(torch.int32), scale.where(finite, torch.nan)
