"""How many prompt tokens a step takes beside sequences that wait for their next token.

A long chunk of a prompt holds up everybody who is being answered. So a step that has both is
to take no longer than a target, and prompts get what that leaves them (as in Sarathi-Serve,
Agrawal et al. 2024, arXiv:2403.02310, but by measured times instead of a number of tokens). A step
that holds up nobody takes as many tokens as it may.

The target is `max_step_ms`, or `max_step_ratio` times the step that the same sequences will take
once all of them decode: what everybody gets soon, whatever prompts do, is the measure of how much
waiting is noticed. Such a target does not depend on how fast the machine is.
"""

import math
from typing import NamedTuple

from engine.config import ResolvedConfig
from engine.llm.draft_surcharge import DraftSurcharge
from engine.llm.step_cost import StepCost, StepWork

LEAST_TOKENS = 16
"""Prompts always get so many."""
_ROUND_ROWS = 8
"""Steps of so many rows, or two, three, … times as many, are recorded; others are padded
(`kernels.native_recording.PROMPT_ROWS`, whose module imports torch)."""
_LEAST_SHARE = 0.25
"""Nor do they get less time than this share of the decodes', however long those take."""
_LEAST_TARGET_S = 0.025
"""Of a target that follows from `max_step_ratio`: 40 tokens a second are more than anyone reads."""


class Price(NamedTuple):
    """What is done beside a step of decodes is paid for with its time."""

    row: float
    """What one more row costs, in tokens that the step would have brought in that time."""
    step_s: float
    """Seconds that the step takes as it is."""
    num_tokens: int
    """That it brings as it is."""
    surcharge: float = 1.0
    """How many times as much a row of drafts has cost of late."""

    @property
    def draft_row(self) -> float:
        """What a row costs that is there for a draft."""
        return self.row * self.surcharge

    @property
    def second(self) -> float:
        """What a second costs, in tokens."""
        return self.num_tokens / self.step_s


class StepBudget:
    """Bounds the prompt tokens of the next step, and learns from those that were taken.

    Args:
        drafts: whether it will be asked for `price`.

    Attributes:
        num_tokens: what the last decided step could have had, decodes included.
        predicted_s: of the last observed step, as was expected before it was.
        measured_s: how long that took. 0 until one was observed, and when nobody asks.
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
        """The most prompt tokens of a step.

        Args:
            decodes: the step without them.
            batch: a step in which all sequences decode that run or soon will.
            start: where the first prompt goes on.
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
        """Of a step of decodes, at least one."""
        row = decodes.num_decodes * self._cost.row_share(decodes)
        step_s = self._cost.predict(decodes)
        return Price(row, step_s, decodes.num_decodes, self._surcharge.factor)

    def observe(self, work: StepWork, seconds: float) -> None:
        """A step with this work took so long."""
        if not self._learns:
            return
        self.predicted_s = self._cost.predict(work) if self._cost.is_known else seconds
        self.measured_s = seconds
        if not work.num_drafts:
            self._surcharge.pass_by()
        elif self._cost.is_known and 0.0 < seconds < math.inf:
            plain_s = self._cost.predict(work.without_drafts)
            self._surcharge.learn(plain_s, self.predicted_s, seconds)
        self._cost.observe(work, seconds)
