"""What rows of drafts cost beyond what rows cost, learned from the steps that had some.

A step with drafts may have a size that is not recorded yet, share caches less well, or take longer
in ways that a sum over its rows does not show. So its time is compared with that of the same step
without drafts, as expected, and rows of drafts are as much dearer as that says.
"""

_PRIOR = 0.2
"""Of a step's time, spent as expected: where learning begins."""
_MEMORY = 32
"""Steps with drafts after which an old one weighs 1 / e."""
_PATIENCE = 256
"""Steps without, after which so does everything: what was too dear gets another chance in time."""
_LEAST, _MOST = 0.5, 20.0
_FARTHEST = 3.0
"""A step that took so many times longer than expected was late for other reasons."""


class DraftSurcharge:
    """The factor of a row's price. Times are in seconds."""

    def __init__(self) -> None:
        self._expected = self._taken = 0.0
        """Of drafts, in times of the steps without them."""

    @property
    def factor(self) -> float:
        factor = (_PRIOR + self._taken) / (_PRIOR + self._expected)
        return min(max(factor, _LEAST), _MOST)

    def learn(self, plain_s: float, expected_s: float, taken_s: float) -> None:
        """A step took so long, which was expected to take so long, and so long without drafts."""
        taken = min(max(taken_s / plain_s - 1.0, -1.0), _FARTHEST)
        self._fade(_MEMORY)
        self._expected += expected_s / plain_s - 1.0
        self._taken += taken

    def pass_by(self) -> None:
        """A step had no drafts."""
        self._fade(_PATIENCE)

    def _fade(self, memory: int) -> None:
        keep = 1.0 - 1.0 / memory
        self._expected *= keep
        self._taken *= keep
