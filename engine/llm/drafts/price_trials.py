"""Decides when drafts are tried although they seem too dear.

The price of a draft is learned from the draft model's steps. Once it is too high nobody drafts, so
it would stay as it is, even if those steps were slow for a passing reason, such as being the first.
"""

RETRY_AFTER = 32
"""The number of steps in which drafts are not worth their price, after which one is tried
anyway."""
TRIAL_STEPS = 4
"""The number of steps of a trial: more than half of those whose median is the draft model's pace,
so a trial of quick steps forgets slow ones."""
LONGEST_PAUSE = 1024
"""The most steps without drafts between two trials."""


class PriceTrials:
    """Trials of a price that is too high. The pause after one that did not lower it is twice as
    long as the one before, up to `LONGEST_PAUSE`; a price that can be paid ends all this.

    If one sequence drafts one token in each step of a trial, n dear steps in a row have at most
    20 + n / 257 such drafts: 5 trials whose pauses grow (32 + 64 + … + 512 = 992), then one in
    1024 + 4 steps. Where a draft takes as long as a step, it is 0.4 % of the time in the long run.

    Attributes:
        is_on: whether this step is part of a trial.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._pause = RETRY_AFTER
        self._num_dear = 0
        """The number of dear steps since the last trial ended, or since the price was last paid."""

    def note(self, *, is_dear: bool) -> None:
        """Note whether the price is too high for all who could draft in this step."""
        if not is_dear:
            self.is_on, self._pause, self._num_dear = False, RETRY_AFTER, 0
            return
        self._num_dear += 1
        self.is_on = self._num_dear > self._pause
        if self._num_dear == self._pause + TRIAL_STEPS:
            self._pause, self._num_dear = min(2 * self._pause, LONGEST_PAUSE), 0
