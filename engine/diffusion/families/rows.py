"""Applies functions to rows separately, so that a row's result never depends on how many there are.

Libraries choose the order of their sums by the size of their input, and compute the rest at the end
of a vector or of a thread's part with other instructions, whose last bits differ.
"""

from collections.abc import Callable

import torch

_LANES = 32
"""The most fp32 numbers that torch computes at once."""
ONE_PART = 32_768
"""The number of numbers from which torch divides them among its threads."""
_ALIGNMENT = 64
"""The alignment in bytes of torch's memory, on which libraries' sums may depend."""


def row_by_row(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, at_once: int = 1
) -> torch.Tensor:
    """Apply `function` to each row of `[R, ...]` separately, or to `at_once` rows."""
    if len(x) <= at_once:
        return function(_aligned(x))
    return torch.cat([function(_aligned(part)) for part in torch.split(x, at_once)])


def number_by_number(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Apply a function of single numbers, to as many rows at once as do not change the result."""
    width = x[:1].numel()
    fits = width % _LANES == 0 and x.is_contiguous()
    return row_by_row(function, x, at_once=max(1, (ONE_PART - 1) // width) if fits else 1)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x.data_ptr() % _ALIGNMENT else x
