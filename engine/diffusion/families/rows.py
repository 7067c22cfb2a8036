"""Rows of a call that must not meet: a row's results never depend on how many others there are.

Libraries choose the order of their sums by the size of what they are given, and compute what is
left over at the end of a vector or a thread's part by other instructions, whose last bits differ.
"""

from collections.abc import Callable

import torch

_LANES = 32
"""fp32 numbers that torch computes at once, at most."""
_ONE_PART = 32_768
"""Numbers from which on torch cuts them up for its threads."""
_ALIGNMENT = 64
"""Bytes. torch's memory begins at a multiple, and libraries' sums may depend on it."""


def row_by_row(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, at_once: int = 1
) -> torch.Tensor:
    """`function` of each row of `[R, ...]` by itself, or of so many."""
    if len(x) <= at_once:
        return function(_aligned(x))
    return torch.cat([function(_aligned(part)) for part in torch.split(x, at_once)])


def number_by_number(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """The same for one that acts on each number alone: as many rows at once as change nothing."""
    width = x[:1].numel()
    fits = width % _LANES == 0 and x.is_contiguous()
    return row_by_row(function, x, at_once=max(1, (_ONE_PART - 1) // width) if fits else 1)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x.data_ptr() % _ALIGNMENT else x
