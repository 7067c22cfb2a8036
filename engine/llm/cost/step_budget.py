"""Decides how many prompt tokens a step takes beside sequences that wait for their next token.

A long chunk of a prompt delays every client that is being answered. A step with both must therefore
take no longer than a target, and prompts get the time that is left (as in Sarathi-Serve, Agrawal et
al. 2024, arXiv:2403.02310, but by measured times instead of a number of tokens). A step that delays
nobody takes as many tokens as it may.

The target is `max_step_ms`, or `max_step_ratio` times the step that the same sequences will take
once all of them decode. All clients will soon get that pace, so it decides how much waiting is
noticed. Such a target does not depend on the machine's speed.
"""

import math
from typing import NamedTuple

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cost.draft_surcharge import DraftSurcharge
from engine.llm.cost.step_cost import StepCost, StepWork

LEAST_TOKENS = 16
"""The least number of tokens that prompts get."""
_ROUND_ROWS = 8
"""Steps with a multiple of this many rows are recorded; others are padded
(`kernels.native_recording.PROMPT_ROWS`, whose module imports torch)."""
_LEAST_SHARE = 0.25
"""The least time that prompts get, as a share of the decodes' time, however long those take."""
_LEAST_TARGET_S = 0.025
"""The shortest target in seconds that follows from `max_step_ratio`: 40 tokens a second are more
than anyone reads."""


class Price(NamedTuple):
    """The price of work beside a step of decodes, paid for with the step's time."""

    row: float
    """The price of one more row, in tokens that the step would have brought in that time."""
    step_s: float
    """The seconds that the step takes as it is."""
    num_tokens: int
    """The tokens that the step brings as it is."""
    surcharge: float = 1.0
    """How many times as much as another row a row of drafts has recently cost."""

    @property
    def draft_row(self) -> float:
        """The price of a row that is there for a draft."""
        return self.row * self.surcharge

    @property
    def second(self) -> float:
        """The price of a second, in tokens."""
        return self.num_tokens / self.step_s


class StepBudget:
    """Limits the prompt tokens of the next step, and learns from the steps that were taken.

    Args:
        drafts: whether `price` will be called.

    Attributes:
        num_tokens: the most tokens that the last decided step could have, decodes included.
        predicted_s: the predicted time of the last observed step.
        measured_s: how long that step took; 0 until one was observed, and if nothing needs it.
    """

    def __init__(self, config: ResolvedConfig, *, drafts: bool = False) -> None:
        self._most = config.max_num_batched_tokens
        self._target_s = config.max_step_ms / 1000
        self._ratio = config.max_step_ratio
        self._cost = StepCost()
        self._surcharge = DraftSurcharge()
        self._learns = self.is_bounded or drafts
        self.num_tokens = self._most
        self.predicted_s = 0.0
        self.measured_s = 0.0

    @property
    def is_bounded(self) -> bool:
        """Whether there is a target at all."""
        return self._target_s > 0.0 or self._ratio > 0.0

    def beside(self, decodes: StepWork, batch: StepWork, start: int) -> int:
        """Return the most prompt tokens that a step may take.

        Args:
            decodes: the step without prompt tokens.
            batch: a step in which all sequences that run, or soon will, decode.
            start: the position where the first prompt continues.
        """
        self.num_tokens = self._most
        room = self._most - decodes.num_decodes
        if self.is_bounded and decodes.num_decodes and self._cost.is_known:
            decodes_s = self._cost.predict(decodes)
            left_s = max(self._target(batch) - decodes_s, _LEAST_SHARE * decodes_s)
            room = min(room, max(LEAST_TOKENS, self._cost.prompt_tokens_in(left_s, start)))
            beyond = (decodes.num_decodes + room) % _ROUND_ROWS
            room -= beyond if room - beyond >= LEAST_TOKENS else 0
            self.num_tokens = decodes.num_decodes + room
        return room

    def _target(self, batch: StepWork) -> float:
        if self._target_s > 0.0:
            return self._target_s
        return max(_LEAST_TARGET_S, self._ratio * self._cost.predict(batch))

    def price(self, decodes: StepWork) -> Price:
        """Compute prices beside a step of decodes, at least one."""
        row = decodes.num_decodes * self._cost.row_share(decodes)
        step_s = self._cost.predict(decodes)
        return Price(row, step_s, decodes.num_decodes, self._surcharge.factor)

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn that a step with this work took `seconds`."""
        if not self._learns:
            return
        self.predicted_s = self._cost.predict(work) if self._cost.is_known else seconds
        self.measured_s = seconds
        if not work.num_drafts and not work.num_again:
            self._surcharge.pass_by()
        elif self._cost.is_known and 0.0 < seconds < math.inf:
            plain_s = self._cost.predict(work.without_drafts)
            expected_s = self._cost.predict(work.without_again)
            self._surcharge.learn(plain_s, expected_s, seconds)
        self._cost.observe(work, seconds)
