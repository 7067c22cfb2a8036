"""Predicts how long a step takes, as learned from earlier steps. It is pure arithmetic without
clock and tensors; `engine.llm.cost.step_budget` asks before it gives prompts their share of a step.

Two things are learned separately. The *shape* says how the parts of a step compare; it depends on
model and kernels and hardly changes. The *pace* says how fast the machine is right now; it follows
the load of other processes within a few steps, and a single late step does not change it.

    seconds  ≈  pace · Σ multiple[i] · TYPICAL[i] · size[i]

The multiples are fitted by least squares of relative errors. Old steps fade from the sums. Steps of
decodes alone and steps with prompts are summed separately, so that an hour of one kind does not
erase what is known of the other. Nor may it shift their ratio: what all steps have in common
belongs to the pace, so errors are relative to their mean, and parts that no step shows follow the
scale of the rest.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Self

from engine.llm.decision import ScheduleDecision

TYPICAL = (12e-3, 1.7e-3, 0.9e-6, 1.15e-3, 0.5e-6)
"""The seconds of a step itself and of each unit of its work, in the order of `StepWork.sizes`, for
a model of 135 million parameters on one core. Learning begins here; only the ratios matter."""

_MEMORY = 64
"""The number of steps of one kind after which an old one weighs 1 / e."""
_RECENT = 7
"""The number of recent steps whose median is the pace."""
_FARTHEST = 2.0
"""A step that deviates from its prediction by more than this factor teaches the shape no more than
that."""
_PRIOR = 0.02
"""The weight of `TYPICAL`'s shape, in steps; it matters only for what no step has shown."""
_NUM_SWEEPS = 4

_Row = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step computes, as far as it costs time."""

    num_decodes: int = 0
    """The number of rows that are computed by themselves, one or several for each sequence that
    decodes."""
    decode_context: int = 0
    """The number of cached tokens that all these rows read together."""
    num_prompt_tokens: int = 0
    """The number of rows of other sequences."""
    num_pairs: float = 0.0
    """The number of pairs of such a row and a token that it attends to."""
    num_drafts: int = 0
    """The number of decode rows that are there for drafts."""
    num_again: int = 0
    """The number of decode rows that are run again since drafts before were wrong."""

    @classmethod
    def of(cls, decision: ScheduleDecision) -> Self:
        """The work of a decided step."""
        parts = [(s.is_decode, s.start, len(s.token_ids)) for s in decision.scheduled]
        decodes = [(start, num_rows) for is_decode, start, num_rows in parts if is_decode]
        chunks = [(start, length) for is_decode, start, length in parts if not is_decode]
        return cls(
            num_decodes=sum(num_rows for _, num_rows in decodes),
            decode_context=sum(num_rows * start for start, num_rows in decodes),
            num_prompt_tokens=sum(length for _, length in chunks),
            num_pairs=sum(length * (start + length / 2) for start, length in chunks),
            num_drafts=sum(max(0, s.num_draws - 1) for s in decision.scheduled),
            num_again=sum(
                len(s.token_ids) - max(1, s.num_draws) for s in decision.scheduled if s.is_apart
            ),
        )

    @classmethod
    def of_decodes(cls, contexts: Iterable[int]) -> Self:
        """The work of a step with one decode per context."""
        lengths = list(contexts)
        return cls(num_decodes=len(lengths), decode_context=sum(lengths))

    @property
    def without_drafts(self) -> Self:
        """The step as it would be if nothing was drafted, neither now nor before."""
        return replace(self.without_again._less(self.num_drafts), num_drafts=0)

    @property
    def without_again(self) -> Self:
        """The same step without rows that are run again."""
        return replace(self._less(self.num_again), num_again=0)

    def _less(self, num_decodes: int) -> Self:
        num_rows = self.num_decodes - num_decodes
        context = self.decode_context * num_rows // max(1, self.num_decodes)
        return replace(self, num_decodes=num_rows, decode_context=context)

    @property
    def sizes(self) -> tuple[float, ...]:
        return (
            1.0,
            self.num_decodes,
            self.decode_context,
            self.num_prompt_tokens,
            self.num_pairs,
        )


@dataclass(slots=True)
class _Sums:
    """The normal equations of weighted least squares, with one row per part of a step."""

    products: list[_Row] = field(default_factory=lambda: [[0.0] * len(TYPICAL) for _ in TYPICAL])
    targets: _Row = field(default_factory=lambda: [0.0] * len(TYPICAL))

    def add(self, row: _Row, target: float) -> None:
        """Add a step whose parts `row` should sum to `target`; older ones fade."""
        keep = 1.0 - 1.0 / _MEMORY
        for i, value in enumerate(row):
            self.targets[i] = keep * self.targets[i] + target * value
            self.products[i] = [
                keep * old + value * other for old, other in zip(self.products[i], row, strict=True)
            ]


class StepCost:
    """Predicts the time of steps, and learns from each."""

    def __init__(self) -> None:
        self._multiples = [1.0] * len(TYPICAL)
        self._ratios: deque[float] = deque(maxlen=_RECENT)
        """The seconds per unit of the shape of recent steps."""
        self._mean_surprise = 1.0
        """The recent mean of measured over predicted time. It is needed because the pace is a
        median, but the fit uses means."""
        self._sums = {has_prompt: _Sums() for has_prompt in (False, True)}

    @property
    def is_known(self) -> bool:
        """Whether any step was observed; predictions mean nothing before."""
        return bool(self._ratios)

    @property
    def pace(self) -> float:
        """The recent seconds per unit of the shape."""
        return median(self._ratios) if self._ratios else 1.0

    def predict(self, work: StepWork) -> float:
        """Predict the seconds that a step with this work takes."""
        return self.pace * self._units(work)

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        if not 0.0 < seconds < math.inf:
            return
        parts = [typical * size for typical, size in zip(TYPICAL, work.sizes, strict=True)]
        units = self._units(work)
        self._ratios.append(seconds / units)
        surprise = min(max(seconds / units / self.pace, 1.0 / _FARTHEST), _FARTHEST)
        self._mean_surprise += (surprise - self._mean_surprise) / _MEMORY
        row = [part / units for part in parts]
        self._sums[work.num_prompt_tokens > 0].add(row, surprise / self._mean_surprise)
        self._fit(units / sum(parts))

    def row_share(self, work: StepWork) -> float:
        """The share by which one more row with a mean context lengthens a step of decodes."""
        rows = work.num_decodes
        more = replace(
            work,
            num_decodes=rows + 1,
            decode_context=work.decode_context + work.decode_context // rows,
        )
        units = self._units(work)
        return (self._units(more) - units) / units

    def prompt_tokens_in(self, seconds: float, start: int) -> int:
        """The number of tokens of a prompt, from position `start` on, that take `seconds`.

        n tokens cost `each` n and, for attention, `pair` n (start + n / 2).
        """
        pace = self.pace
        each, pair = (pace * m * t for m, t in zip(self._multiples[3:], TYPICAL[3:], strict=True))
        linear = each + pair * start
        if linear <= 0.0 or seconds <= 0.0:
            return 0
        # The positive root of pair / 2 n² + linear n = seconds, also where pair is 0.
        return int(2.0 * seconds / (linear + math.sqrt(linear * linear + 2.0 * pair * seconds)))

    def _units(self, work: StepWork) -> float:
        parts = zip(self._multiples, TYPICAL, work.sizes, strict=True)
        return sum(multiple * typical * size for multiple, typical, size in parts)

    def _fit(self, scale: float) -> None:
        """Fit least squares over both kinds of steps, coordinate by coordinate from the last
        solution. No part falls below a hundredth of its typical value, and parts that were not
        shown follow `scale`."""
        kinds = tuple(self._sums.values())
        for _ in range(_NUM_SWEEPS):
            for i in range(len(TYPICAL)):
                weight, target = _PRIOR, _PRIOR * scale
                for sums in kinds:
                    products = sums.products[i]
                    others = sum(map(float.__mul__, products, self._multiples))
                    weight += products[i]
                    target += sums.targets[i] - others + products[i] * self._multiples[i]
                self._multiples[i] = max(0.01, target / weight)
