"""Mirostat 2: how unlikely a token may be, so that the surprise of a text comes near a target.

Paper: Basu et al. 2021, arXiv:2007.14966, as llama.cpp's second version has it: a bound `mu` of the
surprise, `-log2 p`, begins at twice the target and goes down by `eta` times what a token's surprise
among those that were kept is above it.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.llm.logits_processors import SampleRow
from engine.types import SamplingParams
from kernels import EditLists

_STEPS = 2.0**20
"""`mu` is a whole number of such parts, so that no library's last bit decides."""
_MOST = 1000.0
"""`2 ** -mu` is above 0."""


@dataclass(slots=True)
class _Bounds:
    params: SamplingParams
    mus: list[float] = field(default_factory=list)
    """Before each token, the next one's included."""


class Mirostat:
    """The processor. Its sequences have no drafts: a draft does not tell how likely it was."""

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self) -> None:
        self._bounds: dict[int, _Bounds] = {}

    def add(self, sequence: NewSequence) -> bool:
        params = sequence.sampling
        if not params.mirostat:
            return False
        self._bounds[sequence.seq_id] = _Bounds(params, [2.0 * params.mirostat_tau])
        return True

    def remove(self, seq_id: int) -> None:
        self._bounds.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        mus = self._bounds[row.seq_id].mus
        if row.position >= len(mus):
            raise InvariantViolation(
                f"sampling at position {row.position}, but only {len(mus) - 1} tokens of the "
                "sequence are known"
            )
        del mus[row.position + 1 :]
        edits.leave_out_below(place, 2.0 ** -min(max(mus[-1], 0.0), _MOST))

    def advance(self, row: SampleRow, token_id: int) -> None:
        """What counts is how likely it was: `observe`."""

    def reads(self, row: SampleRow) -> bool:
        """Whether `observe` wants to know of the row's token."""
        return row.seq_id in self._bounds

    def observe(self, row: SampleRow, mass: int, total: int) -> None:
        """The token that was drawn, by its weight and that of all that could have been; 0 and 0 at
        temperature 0, where nothing can surprise."""
        bounds = self._bounds[row.seq_id]
        surprise = math.log2(total / mass) if mass else 0.0
        error = surprise - bounds.params.mirostat_tau
        mu = bounds.mus[row.position] - bounds.params.mirostat_eta * error
        bounds.mus[row.position + 1 :] = [round(mu * _STEPS) / _STEPS]
