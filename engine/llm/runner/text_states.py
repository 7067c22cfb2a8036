"""Keeps the hidden states of texts with contrastive search, with which candidates for a token are
compared.

They are kept by position, normalised, in fp32, as long as the text's sequences exist. A candidate's
own state is kept beside them and joins the text's when the next step follows the candidate
(`engine.llm.decision.ScheduledSequence.follows`).
"""

import torch
from torch import Tensor

from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.llm.runner.batch import StepRows
from kernels.shared.transfer import HostCopy

_FIRST_CAPACITY = 256
_ROWS_AT_A_TIME = 1024
"""The number of a text's states whose products with a candidate's state are in memory together."""


class TextStates:
    """The states of one model's texts, used by the loop thread only. It never waits for the
    device."""

    def __init__(self) -> None:
        self._texts: dict[int, _Text | None] = {}
        """The text of each sequence, shared by candidates of one text; None before its first
        row."""
        self._last: dict[int, Tensor] = {}
        """The state of each candidate, [C]."""

    def add(self, sequence: NewSequence) -> None:
        """Register a sequence if it is compared. Anything kept for the same id is dropped."""
        self.remove(sequence.seq_id)
        if sequence.sampling.contrast is not None:
            self._texts[sequence.seq_id] = None

    def remove(self, seq_id: int) -> None:
        """Forget a sequence; unknown ids are ignored."""
        self._texts.pop(seq_id, None)
        self._last.pop(seq_id, None)

    def compare(self, rows: StepRows, hidden: Tensor) -> dict[int, HostCopy]:
        """Keep the states of texts, and compare those of candidates with them.

        Args:
            hidden: the hidden states of these rows, [T, C]; not kept.

        Returns:
            For each candidate, the greatest cosine to a state of the text before it, [1] fp32.
        """
        found: dict[int, HostCopy] = {}
        if not self._texts:
            return found
        for span, first_row in zip(rows.spans, rows.first_rows, strict=True):
            sequence = span.sequence
            if sequence.seq_id not in self._texts:
                continue
            states = _normalised(hidden[first_row : first_row + span.num_rows])
            start = sequence.start + span.first
            if sequence.follows is None:
                self._text_of(sequence.seq_id, start).put(start, states)
                continue
            text = self._followed(sequence.follows, start)
            self._texts[sequence.seq_id] = text
            self._last[sequence.seq_id] = states[0]
            found[sequence.seq_id] = HostCopy(text.similarity(states[0]))
        return found

    def _text_of(self, seq_id: int, start: int) -> "_Text":
        """The text whose rows from `start` on are computed now."""
        text = self._texts[seq_id] if start else _Text()
        if text is None:
            raise InvariantViolation("the states of a text's beginning are not there")
        self._texts[seq_id] = text
        return text

    def _followed(self, seq_id: int, length: int) -> "_Text":
        """The text of `length` tokens that ends in the last row of a sequence."""
        text = self._texts.get(seq_id)
        if text is not None and text.length == length - 1 and seq_id in self._last:
            text.put(length - 1, self._last[seq_id].unsqueeze(0))
        if text is None or text.length != length:
            raise InvariantViolation("a candidate follows a text whose states are not there")
        return text


class _Text:
    """The states of positions 0 .. length."""

    def __init__(self) -> None:
        self.length = 0
        self._states: Tensor | None = None
        """Shape [capacity, C]."""

    def put(self, start: int, states: Tensor) -> None:
        """Store states from position `start` on and drop later ones."""
        if start > self.length:
            raise InvariantViolation("states of a text are missing")
        end = start + len(states)
        if self._states is None or end > len(self._states):
            capacity = max(_FIRST_CAPACITY, 2 * end)
            grown = torch.empty(
                capacity, states.shape[1], dtype=torch.float32, device=states.device
            )
            if self._states is not None:
                grown[:start] = self._states[:start]
            self._states = grown
        self._states[start:end] = states
        self.length = end

    def similarity(self, state: Tensor) -> Tensor:
        """The greatest cosine, [1]. Each is summed by itself, so that neither the number of threads
        nor other work changes a bit."""
        if self._states is None:
            raise InvariantViolation("a text has no states")
        cosines = [
            (self._states[at : min(at + _ROWS_AT_A_TIME, self.length)] * state).sum(-1)
            for at in range(0, self.length, _ROWS_AT_A_TIME)
        ]
        return torch.cat(cosines).max().unsqueeze(0)


def _normalised(hidden: Tensor) -> Tensor:
    """Copy rows as [R, C] fp32, scaled to length 1."""
    states = hidden.float()
    return states / (states * states).sum(-1, keepdim=True).sqrt()
