"""Limits the time of image steps while text is being generated.

More exactly, the kinds of model that yield leave time to those that do not
(`engine.contract.kinds`). The server process knows from the step reports whether a model that does
not yield has work, and tells the workers of the others when that changes; a throttled worker sleeps
between its steps (`engine.worker.loop`).
"""

from collections.abc import Callable


class ImageShare:
    """Watches the models that do not yield. Used on the event loop only.

    Args:
        share: the share of time that steps of yielding models may take while another model has
            work.
        tell: called with the share, or None, whenever the limit changes.
    """

    def __init__(self, share: float, tell: Callable[[float | None], None]) -> None:
        self._share = share
        self._tell = tell
        self._busy: set[str] = set()

    @property
    def bound(self) -> float | None:
        """The share that applies now; None is no limit."""
        return self._share if self._busy else None

    def note(self, model: str, *, busy: bool) -> None:
        """Note whether a model that does not yield has work."""
        was_busy = bool(self._busy)
        if busy:
            self._busy.add(model)
        else:
            self._busy.discard(model)
        if bool(self._busy) is not was_busy:
            self._tell(self.bound)
