"""Keeps image work from starving text: while text has work, image steps take a share of the time.

More exactly: the kinds of model that yield leave time to those that do not (`engine.kinds`). The
server process knows from the step reports whether a model of the latter has work, and tells the
workers of the former when that changes; a throttled worker sleeps between its steps
(`engine.loop`).
"""

from collections.abc import Callable


class ImageShare:
    """Watches the models that yield to nobody. Event loop only.

    Args:
        share: of the time that the others' steps may take while one of them has work.
        tell: called with the share, or None, whenever the bound changes.
    """

    def __init__(self, share: float, tell: Callable[[float | None], None]) -> None:
        self._share = share
        self._tell = tell
        self._busy: set[str] = set()

    @property
    def bound(self) -> float | None:
        """The share that holds now; None: there is no bound."""
        return self._share if self._busy else None

    def note(self, model: str, *, busy: bool) -> None:
        """Note whether a model that yields to nobody has work."""
        was_busy = bool(self._busy)
        if busy:
            self._busy.add(model)
        else:
            self._busy.discard(model)
        if bool(self._busy) is not was_busy:
            self._tell(self.bound)
