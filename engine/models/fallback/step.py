"""The step that a model of transformers computes: its code does not pass our context on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from engine.models.forward_context import NO_CONTEXT, ForwardContext

_current: ContextVar[ForwardContext] = ContextVar("step", default=NO_CONTEXT)


def current_context() -> ForwardContext:
    """Of the forward pass that runs in this thread; `NO_CONTEXT` outside of one."""
    return _current.get()


@contextmanager
def in_step(ctx: ForwardContext) -> Iterator[None]:
    """While a forward pass runs."""
    token = _current.set(ctx)
    try:
        yield
    finally:
        _current.reset(token)
