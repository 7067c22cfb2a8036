"""How long a step takes, learned from the steps that were taken. Pure arithmetic: no clock, no
tensors; `engine.llm.step_budget` asks, before it gives prompts their share of a step.

Two things are learned apart. The *shape* says how the parts of a step compare: it belongs to model
and kernels and hardly changes. The *pace* says how fast the machine is just now: it follows other
processes' load within a few steps, and a single late step does not move it.

    seconds  ≈  pace · Σ multiple[i] · TYPICAL[i] · size[i]

The multiples are those that fit best by least squares of relative errors. Their sums forget old
steps, those of decodes alone and those with prompts apart: an hour of the one does not wipe out
what is known of the other. Nor may it shift their ratio: what all steps have in common is the
pace's, so errors are taken relative to their mean, and what no step shows to the scale of the rest.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Self

from engine.llm.decision import ScheduleDecision

TYPICAL = (12e-3, 1.7e-3, 0.9e-6, 1.15e-3, 0.5e-6)
"""Seconds of a step itself and of each unit of its work, in the order of `StepWork.sizes`: a model
of 135 million parameters on one core. Where learning begins; only the ratios count."""

_MEMORY = 64
"""Steps of one kind after which an old one weighs 1 / e."""
_RECENT = 7
"""Steps whose median is the pace."""
_FARTHEST = 2.0
"""A step that took so many times longer or shorter than predicted teaches the shape no more than
that."""
_PRIOR = 0.02
"""Weight of `TYPICAL`'s shape, in steps: it decides only what no step has shown."""
_NUM_SWEEPS = 4

_Row = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step computes, as far as it costs time."""

    num_decodes: int = 0
    """Rows that are computed by themselves, one of each sequence that decodes or several."""
    decode_context: int = 0
    """Cached tokens that these read, all together."""
    num_prompt_tokens: int = 0
    """Rows of the other sequences."""
    num_pairs: float = 0.0
    """Pairs of such a row and a token that it attends to."""
    num_drafts: int = 0
    """Rows among those of decodes that are there for drafts."""

    @classmethod
    def of(cls, decision: ScheduleDecision) -> Self:
        """The work of a step that has been decided."""
        parts = [(s.is_decode, s.start, len(s.token_ids)) for s in decision.scheduled]
        decodes = [(start, num_rows) for is_decode, start, num_rows in parts if is_decode]
        chunks = [(start, length) for is_decode, start, length in parts if not is_decode]
        return cls(
            num_decodes=sum(num_rows for _, num_rows in decodes),
            decode_context=sum(num_rows * start for start, num_rows in decodes),
            num_prompt_tokens=sum(length for _, length in chunks),
            num_pairs=sum(length * (start + length / 2) for start, length in chunks),
            num_drafts=sum(max(0, s.num_draws - 1) for s in decision.scheduled),
        )

    @classmethod
    def of_decodes(cls, contexts: Iterable[int]) -> Self:
        """That of a step of one row per context."""
        lengths = list(contexts)
        return cls(num_decodes=len(lengths), decode_context=sum(lengths))

    @property
    def without_drafts(self) -> Self:
        """The same step with the rows that it would have had anyway."""
        num_rows = self.num_decodes - self.num_drafts
        context = self.decode_context * num_rows // max(1, self.num_decodes)
        return replace(self, num_decodes=num_rows, decode_context=context, num_drafts=0)

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
    """Normal equations of weighted least squares, one row per part of a step."""

    products: list[_Row] = field(default_factory=lambda: [[0.0] * len(TYPICAL) for _ in TYPICAL])
    targets: _Row = field(default_factory=lambda: [0.0] * len(TYPICAL))

    def add(self, row: _Row, target: float) -> None:
        """A step whose parts `row` should add up to `target`; older ones fade."""
        keep = 1.0 - 1.0 / _MEMORY
        for i, value in enumerate(row):
            self.targets[i] = keep * self.targets[i] + target * value
            self.products[i] = [
                keep * old + value * other for old, other in zip(self.products[i], row, strict=True)
            ]


class StepCost:
    """Predicts steps, and learns from each."""

    def __init__(self) -> None:
        self._multiples = [1.0] * len(TYPICAL)
        self._ratios: deque[float] = deque(maxlen=_RECENT)
        """Of recent steps: seconds per unit of the shape."""
        self._mean_surprise = 1.0
        """Of late. The pace is a median, and the fit is one of means."""
        self._sums = {has_prompt: _Sums() for has_prompt in (False, True)}

    @property
    def is_known(self) -> bool:
        """Whether any step was observed: predictions mean nothing before."""
        return bool(self._ratios)

    @property
    def pace(self) -> float:
        """Seconds per unit of the shape, of late."""
        return median(self._ratios) if self._ratios else 1.0

    def predict(self, work: StepWork) -> float:
        """Seconds that a step with this work takes."""
        return self.pace * self._units(work)

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from a step that took so long."""
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
        """The part of a step of decodes that one more row of a mean context adds to its time."""
        rows = work.num_decodes
        more = replace(
            work,
            num_decodes=rows + 1,
            decode_context=work.decode_context + work.decode_context // rows,
        )
        units = self._units(work)
        return (self._units(more) - units) / units

    def prompt_tokens_in(self, seconds: float, start: int) -> int:
        """How many tokens of a prompt, from position `start` on, take so long.

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
        """Least squares over both kinds of steps, no part below a hundredth of what is typical:
        coordinate by coordinate, from the last solution on. What is not shown goes to `scale`."""
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
