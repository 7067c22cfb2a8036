"""Learns how much more a row of a draft costs than another row, from the steps that had some.

A step with drafts may have a size that is not recorded yet, use caches less well, or take longer in
ways that a sum over its rows does not show. After a wrong draft, a recurrent state must read some
tokens again. A step's time is therefore compared with the expected time of the same step without
either, and the difference is charged to the rows of drafts.
"""

_PRIOR = 0.2
"""The weight of the start value, as a share of a step's time that was spent as expected."""
_MEMORY = 32
"""The number of steps with drafts after which an old one weighs 1 / e."""
_PATIENCE = 256
"""The number of steps without drafts after which everything weighs 1 / e, so that drafts that were
too expensive get another chance."""
_LEAST, _MOST = 0.5, 20.0
_FARTHEST = 3.0
"""Excess time beyond this many times the plain duration has other causes, and is not counted."""


class DraftSurcharge:
    """The factor by which a draft row's price is higher. Times are in seconds."""

    def __init__(self) -> None:
        self._expected = self._taken = 0.0
        """Time for drafts, expected and taken, in units of the steps without them."""

    @property
    def factor(self) -> float:
        factor = (_PRIOR + self._taken) / (_PRIOR + self._expected)
        return min(max(factor, _LEAST), _MOST)

    def learn(self, plain_s: float, expected_s: float, taken_s: float) -> None:
        """Learn from a step with drafts: its expected time without drafts, its expected time, and
        the time that it took."""
        taken = min(max(taken_s / plain_s - 1.0, -1.0), _FARTHEST)
        self._fade(_MEMORY)
        self._expected += expected_s / plain_s - 1.0
        self._taken += taken

    def pass_by(self) -> None:
        """Note that a step had no drafts."""
        self._fade(_PATIENCE)

    def _fade(self, memory: int) -> None:
        keep = 1.0 - 1.0 / memory
        self._expected *= keep
        self._taken *= keep
