"""Classifier-free guidance of text: two rows' logits become those that a token is drawn from.

    log p = log p(token | negative) + scale * (log p(token | prompt) - log p(token | negative))

A row whose partner is not computed in the same step is kept until that one comes, in whatever step:
only its logits matter, and those have the same bits. Paper: Sanchez et al. 2023, arXiv:2306.17806,
equation 7, as in transformers' `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.llm.decision import NewSequence
from engine.llm.logits_processors import SampleRow

_LEAST = -1e9
"""Log-probability, in place of minus infinity, of which there is no multiple."""


@dataclass(frozen=True, slots=True)
class ReadyRows:
    """Rows that a token can be drawn from."""

    logits: Tensor
    """[R, V]."""
    rows: list[SampleRow]
    receivers: list[int]
    """By row the sequence whose outcome the token is."""
    waiting: list[int] = field(default_factory=list)
    """Sequences whose row draws nothing: the token will be its partner's outcome."""


@dataclass(frozen=True, slots=True)
class _Half:
    """A row whose partner has not come."""

    row: SampleRow
    logits: Tensor


class Guidance:
    """The guided sequences of one model. Loop thread only; waits for no device."""

    def __init__(self) -> None:
        self._main_of: dict[int, int] = {}
        """Of both of a pair the one that has the prompt."""
        self._scales: dict[int, float] = {}
        """By that one."""
        self._halves: dict[int, _Half] = {}
        """The same."""

    def add(self, sequence: NewSequence) -> None:
        """Know a sequence, guided or not; what was kept of one that comes again goes."""
        params = sequence.sampling.guidance
        if params is None:
            return
        main = sequence.seq_id if sequence.guides is None else sequence.guides
        self._main_of[sequence.seq_id] = main
        self._scales[main] = params.scale
        kept = self._halves.get(main)
        if kept is not None and kept.row.seq_id == sequence.seq_id:
            del self._halves[main]

    def remove(self, seq_id: int) -> None:
        """Forget it; unknown ids are fine."""
        if self._main_of.pop(seq_id, None) == seq_id:
            self._scales.pop(seq_id, None)
            self._halves.pop(seq_id, None)

    def ready(self, logits: Tensor, rows: list[SampleRow]) -> ReadyRows:
        """Put guided rows together.

        Args:
            logits: [R, V], of these rows.
        """
        plain = [i for i, row in enumerate(rows) if row.seq_id not in self._main_of]
        receivers = [rows[i].seq_id for i in plain]
        if len(plain) == len(rows):
            return ReadyRows(logits, rows, receivers)
        drawn, drawing, waiting = [logits[plain].float()], [rows[i] for i in plain], list[int]()
        for row, values in zip(rows, logits, strict=True):
            main = self._main_of.get(row.seq_id)
            if main is None:
                continue
            other = self._halves.pop(main, None)
            # What is kept of a step that was in vain may be of the same sequence, or be too old.
            fits = other is not None and other.row.seq_id != row.seq_id
            if other is None or not fits or other.row.position != row.position:
                self._halves[main] = _Half(row, values.clone())
                waiting.append(row.seq_id)
                continue
            own, negative = (values, other.logits)
            if row.seq_id != main:
                own, negative = negative, own
            drawn.append(guided(own, negative, self._scales[main]).unsqueeze(0))
            drawing.append(SampleRow(main, row.position))
            receivers.append(row.seq_id)
        return ReadyRows(torch.cat(drawn), drawing, receivers, waiting)


def guided(logits: Tensor, negative: Tensor, scale: float) -> Tensor:
    """The logits of a token that is guided away from a negative prompt: [V] fp32.

    Row by row, so that their bits depend on no other row.

    Args:
        logits, negative: [V] of any float dtype.
        scale: 1 is the prompt's own distribution.
    """
    own = logits.float().log_softmax(-1)
    other = negative.float().log_softmax(-1).clamp(min=_LEAST)
    return torch.where(own > -torch.inf, other + scale * (own - other), own)
