"""The rounding of activations to int8, the same in every op and implementation that uses it."""

import torch
from torch import Tensor

SMALLEST = 1e-30
"""A group whose largest magnitude is below this becomes zeros, so that 127 / amax stays finite."""


def round_to_int8(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Round each `group_size` elements of a row by the largest magnitude among them.

    All in fp32, in this order, so that implementations agree to the bit: `scale = amax / 127`;
    `q = round(x * (127 / amax))`, halves to even.

    Args:
        x: [M, K], any float dtype. K is a multiple of `group_size`.

    Returns:
        q: [M, K / group_size, group_size] int8 in -127 ... 127.
        scale: [M, K / group_size, 1] fp32; `q * scale` approximates x.
    """
    groups = x.float().reshape(x.shape[0], x.shape[1] // group_size, group_size)
    largest = groups.abs().amax(-1, keepdim=True)
    # PyTorch computes a number divided by a tensor as the number times a reciprocal, which rounds
    # twice.
    inverse = torch.full_like(largest, 127) / largest.clamp(min=SMALLEST)
    return (groups * inverse).round().to(torch.int8), largest / 127
