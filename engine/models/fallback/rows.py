"""Rows of a step kept apart in what transformers' code computes by itself on a CPU.

Products, attention, experts and activations are ours wherever a module of theirs can be replaced.
What is left is written out between the modules: routers multiply by a weight of their own, gates
take a sigmoid. Libraries choose the order of their sums by the number of rows, and compute an
element by its place in a vector.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MEET = frozenset(
    {
        *(F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm),
        *(torch.exp, Tensor.exp, torch.tanh, Tensor.tanh, F.tanh, F.softplus),
        *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.silu, F.gelu),
    }
)
"""Functions in which rows of their first argument meet."""


class RowsApart(TorchFunctionMode):
    """While it is on, these functions are called for each row by itself.

    Attributes:
        was_needed: whether one has been called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.was_needed = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MEET or not _has_rows(args):
            return func(*args, **kwargs)
        self.was_needed = True
        x, *others = args
        # Each from memory of its own: sums may also depend on where a row begins.
        rows = torch.split(x.reshape(-1, x.shape[-1]), 1)
        found = torch.cat([func(row.clone(), *others, **kwargs) for row in rows])
        return found.view(*x.shape[:-1], found.shape[-1])


def _has_rows(args: Any) -> bool:
    """Whether rows come first, and what they are multiplied by, if anything, is for all of them."""
    if not args or not isinstance(args[0], Tensor):
        return False
    x, *others = args
    tensors = [one for one in others if isinstance(one, Tensor)]
    return x.is_cpu and x.ndim > 1 and x.numel() > 0 and all(one.ndim <= 2 for one in tensors)
