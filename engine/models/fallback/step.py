"""The current step of a model of transformers, whose code does not pass our context on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from engine.models.forward_context import NO_CONTEXT, ForwardContext, RowAdapters

_current: ContextVar[ForwardContext] = ContextVar("step", default=NO_CONTEXT)
_numbers: ContextVar[Iterator[int]] = ContextVar("numbers")


def current_context() -> ForwardContext:
    """Return the context of the forward pass in this thread, or `NO_CONTEXT` outside one."""
    return _current.get()


@contextmanager
def in_step(ctx: ForwardContext) -> Iterator[None]:
    """Set the context while a forward pass runs."""
    token, numbers = _current.set(ctx), _numbers.set(count())
    try:
        yield
    finally:
        _current.reset(token)
        _numbers.reset(numbers)


@dataclass(frozen=True, slots=True)
class _AdaptersOfRow:
    """The adapter of one row of the step for any number of rows."""

    adapters: RowAdapters
    row: int

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        """See `RowAdapters.add`."""
        self.at(x).add(path, x, y)

    def at(self, rows: Tensor) -> RowAdapters:
        """See `RowAdapters.at`."""
        return self.adapters.at(torch.full((len(rows),), self.row))


@contextmanager
def at_row(row: int) -> Iterator[None]:
    """Let layers compute one row of the step alone, with its adapter. Layers may compute the text's
    earlier tokens again."""
    ctx = _current.get()
    if ctx.adapters is None:
        yield
        return
    adapters: Any = _AdaptersOfRow(ctx.adapters, row)
    token = _current.set(replace(ctx, adapters=adapters))
    try:
        yield
    finally:
        _current.reset(token)


def next_number() -> int:
    """Number the calls of attention in a forward pass: each has keys and values of its own, even if
    a layer makes two, or is computed twice."""
    return next(_numbers.get())
