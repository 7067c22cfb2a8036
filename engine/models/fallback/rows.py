"""Keeps rows of a step apart in the operations that transformers' code computes itself on a CPU.

Our layers replace products, attention, experts and activations wherever they are modules of their
own. The rest is written out between the modules: routers multiply by a weight of their own, gates
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
"""Functions whose result for a row of the first argument can depend on other rows."""


class RowsApart(TorchFunctionMode):
    """A mode in which these functions are called for each row separately.

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
        # Each row gets memory of its own, since sums may also depend on where a row begins.
        rows = torch.split(x.reshape(-1, x.shape[-1]), 1)
        found = torch.cat([func(row.clone(), *others, **kwargs) for row in rows])
        return found.view(*x.shape[:-1], found.shape[-1])


def _has_rows(args: Any) -> bool:
    """Whether the first argument has rows first and the other arguments apply to all rows."""
    if not args or not isinstance(args[0], Tensor):
        return False
    x, *others = args
    tensors = [one for one in others if isinstance(one, Tensor)]
    return x.is_cpu and x.ndim > 1 and x.numel() > 0 and all(one.ndim <= 2 for one in tensors)
