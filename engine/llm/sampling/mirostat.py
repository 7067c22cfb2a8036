"""Mirostat 2: bounds how unlikely a token may be, so that the surprise of a text comes near a
target.

Paper: Basu et al. 2021, arXiv:2007.14966, in llama.cpp's second version. The bound `mu` of the
surprise, `-log2 p`, starts at twice the target. Each token lowers it by `eta` times the excess of
the token's surprise, among the kept tokens, over the target.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from engine.contract.sampling_params import SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from kernels import EditLists

_STEPS = 2.0**20
"""The number of parts that a unit of `mu` is rounded to, so that no library's last bit decides."""
_MOST = 1000.0
"""The largest `mu`, for which `2 ** -mu` is still above 0."""


@dataclass(slots=True)
class _Bounds:
    params: SamplingParams
    mus: list[float] = field(default_factory=list)
    """The value of `mu` before each token, the next one's included."""


class Mirostat:
    """The Mirostat processor. Its sequences have no drafts, as a draft does not tell how likely it
    was."""

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
        """Do nothing: `observe` learns how likely the token was."""

    def reads(self, row: SampleRow) -> bool:
        """Whether `observe` needs the row's token."""
        return row.seq_id in self._bounds

    def observe(self, row: SampleRow, mass: int, total: int) -> None:
        """Learn from a drawn token, given its weight and that of all tokens that could have been
        drawn. Both are 0 at temperature 0, where nothing can surprise."""
        bounds = self._bounds[row.seq_id]
        surprise = math.log2(total / mass) if mass else 0.0
        error = surprise - bounds.params.mirostat_tau
        mu = bounds.mus[row.position] - bounds.params.mirostat_eta * error
        bounds.mus[row.position + 1 :] = [round(mu * _STEPS) / _STEPS]
