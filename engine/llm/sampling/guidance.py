"""Classifier-free guidance of text: combines the logits of two rows into those that a token is
drawn from.

    log p = log p(token | negative) + scale * (log p(token | prompt) - log p(token | negative))

A row whose partner is not computed in the same step is kept until the partner comes, in whichever
step. Only the logits matter, and their bits do not depend on the step. Paper: Sanchez et al. 2023,
arXiv:2306.17806, equation 7, as in transformers' `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.llm.decision import NewSequence, SampleRow

_LEAST = -1e9
"""The log-probability that stands for minus infinity, which cannot be scaled."""


@dataclass(frozen=True, slots=True)
class ReadyRows:
    """Rows from which a token can be drawn."""

    logits: Tensor
    """Shape [R, V]."""
    rows: list[SampleRow]
    receivers: list[int]
    """For each row, the sequence whose outcome is the token."""
    waiting: list[int] = field(default_factory=list)
    """Sequences whose row draws nothing; the token will be their partner's outcome."""


@dataclass(frozen=True, slots=True)
class _Half:
    """A row whose partner has not been computed yet."""

    row: SampleRow
    logits: Tensor


class Guidance:
    """The guided sequences of one model, used by the loop thread only. It never waits for the
    device."""

    def __init__(self) -> None:
        self._main_of: dict[int, int] = {}
        """For both sequences of a pair, the one that has the prompt."""
        self._scales: dict[int, float] = {}
        """The guidance scale, by the sequence that has the prompt."""
        self._halves: dict[int, _Half] = {}
        """Rows that wait for their partner, by the sequence that has the prompt."""

    def add(self, sequence: NewSequence) -> None:
        """Register a sequence, guided or not. A row kept for the same id is dropped."""
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
        """Forget a sequence; unknown ids are ignored."""
        if self._main_of.pop(seq_id, None) == seq_id:
            self._scales.pop(seq_id, None)
            self._halves.pop(seq_id, None)

    def ready(self, logits: Tensor, rows: list[SampleRow]) -> ReadyRows:
        """Combine guided rows with their partners.

        Args:
            logits: the logits of these rows, [R, V].
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
            # A row kept from a void step may belong to the same sequence, or be too old.
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
    """Compute the logits of a token that is guided away from a negative prompt: [V], fp32.

    One row at a time, so that its bits depend on no other row.

    Args:
        logits, negative: shape [V], any float dtype.
        scale: 1 gives the prompt's own distribution.
    """
    own = logits.float().log_softmax(-1)
    other = negative.float().log_softmax(-1).clamp(min=_LEAST)
    return torch.where(own > -torch.inf, other + scale * (own - other), own)
