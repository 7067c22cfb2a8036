"""The rounding of activations to one or two signed bytes, for processors that multiply bytes."""

import torch
from torch import Tensor

from kernels.shared.int8_activations import SMALLEST

MOST = 127 * 256 + 127
"""The largest integer of two digits: 256 times a signed byte plus another one."""
QUAD = 4
"""Neighbours that have as many digits: what one instruction multiplies."""
QUADS_PER_WIDE = 4
"""One of so many quads has two digits."""


def round_to_digits(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Round each `group_size` elements of a row so that outliers do not make others coarse.

    The quads with the largest magnitudes, one for each 16 elements, the first of equal ones, get
    integers of two digits, the others of one. The scale is the smallest for which the integers have
    no more digits. All in fp32, in this order, so that implementations agree to the bit:
    `scale = max(largest of one digit / 127, largest / MOST, SMALLEST)`;
    `q = round(x * (1 / scale))`, where the product is exact and halves become even.

    Args:
        x: [M, K], any float dtype. K is a multiple of `group_size`, which is 16 or 32.

    Returns:
        q: [M, K / group_size, group_size] int32 in -MOST ... MOST.
        scale: [M, K / group_size, 1] fp32; `q * scale` approximates x. A group that is not finite
            has zeros and the scale NaN.
    """
    groups = x.float().reshape(x.shape[0], x.shape[1] // group_size, group_size)
    finite = groups.isfinite().all(-1, keepdim=True)
    rest = groups.where(finite, 0.0).abs().view(*groups.shape[:2], -1, QUAD).amax(-1)
    largest = rest.amax(-1, keepdim=True)
    for _ in range(group_size // QUAD // QUADS_PER_WIDE):
        rest.scatter_(-1, rest.argmax(-1, keepdim=True), -1.0)
    of_one_digit = rest.amax(-1, keepdim=True)
    # PyTorch may divide by a number as it multiplies by a reciprocal, which rounds twice.
    scale = torch.maximum(
        of_one_digit / torch.full_like(largest, 127), largest / torch.full_like(largest, MOST)
    ).clamp(min=SMALLEST)
    inverse = torch.ones_like(scale) / scale
    q = torch.where(finite, groups.double() * inverse.double(), 0.0).round()
    return q.to(torch.int32), scale.where(finite, torch.nan)
