"""The current step of a model of transformers, whose code does not pass our context on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from engine.models.forward_context import NO_CONTEXT, ForwardContext

_current: ContextVar[ForwardContext] = ContextVar("step", default=NO_CONTEXT)


def current_context() -> ForwardContext:
    """Return the context of the forward pass in this thread, or `NO_CONTEXT` outside one."""
    return _current.get()


@contextmanager
def in_step(ctx: ForwardContext) -> Iterator[None]:
    """Set the context while a forward pass runs."""
    token = _current.set(ctx)
    try:
        yield
    finally:
        _current.reset(token)
