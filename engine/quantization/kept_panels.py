"""Panels that an earlier start has left, if somebody keeps them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from kernels.linear_panels.panels import PanelFormat, Panels


class PanelKeeper(Protocol):
    """Has panels of a checkpoint's weights, in the order in which a load asks for them."""

    def panels(
        self, form: PanelFormat, out_features: int, in_features: int, make: Callable[[], Panels]
    ) -> Panels:
        """The next panels, which `make` returns if they are not known."""


_keeper: ContextVar[PanelKeeper | None] = ContextVar("panel keeper", default=None)


@contextmanager
def kept_by(keeper: PanelKeeper | None) -> Iterator[None]:
    """Ask `keeper` for the panels of all weights that are loaded meanwhile in this context."""
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)


def kept_panels(
    form: PanelFormat, out_features: int, in_features: int, make: Callable[[], Panels]
) -> Panels:
    """Panels of an [out_features, in_features] weight: kept ones, or those that `make` returns."""
    keeper = _keeper.get()
    return make() if keeper is None else keeper.panels(form, out_features, in_features, make)
