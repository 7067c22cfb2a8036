"""Rows of numbers in 8 bits, a step for each `GROUP` of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64
"""Neighbours that share a step. As in `packed.h`."""
_LARGEST = 127
_SMALLEST_STEP = torch.finfo(torch.float32).tiny
"""What would need a smaller one is no more than zero."""
_STEP_BYTES = torch.float32.itemsize
_ALIGNMENT = 4


def row_bytes(length: int) -> int:
    """That a packed row of so many numbers takes."""
    return _num_groups(length) * _STEP_BYTES + -(-length // _ALIGNMENT) * _ALIGNMENT


def pack(rows: Tensor) -> Tensor:
    """Round [..., n] finite numbers to [..., `row_bytes(n)`] uint8.

    A row is the steps of its groups in fp32, then its numbers as int8 multiples of them, then zeros
    up to a multiple of 4 bytes. A group's step is 1/127 of its largest number: each is off by half
    a step at most.
    """
    length = rows.shape[-1]
    num_groups = _num_groups(length)
    groups = F.pad(rows, (0, num_groups * GROUP - length)) if length % GROUP else rows
    groups = groups.reshape(*rows.shape[:-1], num_groups, GROUP)
    steps = groups.abs().amax(-1).float() / _LARGEST
    per_step = torch.where(steps >= _SMALLEST_STEP, 1 / steps, 0)
    scaled = groups.to(torch.float32, copy=True).mul_(per_step[..., None])
    numbers = scaled.round_().to(torch.int8)
    filling = rows.new_zeros(*rows.shape[:-1], -length % _ALIGNMENT, dtype=torch.uint8)
    numbers = numbers.flatten(-2)[..., :length].view(torch.uint8)
    return torch.cat((steps.view(torch.uint8), numbers, filling), -1)


def unpack(packed: Tensor, length: int) -> Tensor:
    """The `length` numbers of each row, in fp32."""
    first = _num_groups(length) * _STEP_BYTES
    steps = packed[..., :first].contiguous().view(torch.float32)
    numbers = packed[..., first : first + length].view(torch.int8)
    return numbers * steps.repeat_interleave(GROUP, -1)[..., :length]


def _num_groups(length: int) -> int:
    return -(-length // GROUP)
