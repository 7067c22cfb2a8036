"""What changes logits before a token is chosen: penalties, biases, forbidden tokens.

A processor serves all sequences that asked for it and touches no other row. Its state is sparse
(the ids a sequence has seen), lives from `add` to `remove`, and survives preemption. The sampler
owns one chain and calls it on the loop thread; structured output joins as one more processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.types import SamplingParams

_MAX_LOGIT = float(torch.finfo(torch.float32).max)


@dataclass(slots=True, frozen=True)
class SampleRow:
    """Whose logits a row holds."""

    seq_id: int
    position: int
    """Tokens generated so far; the one to be drawn gets this index."""


class LogitsProcessor(Protocol):
    """One kind of change, applied in the chain's order.

    With `needs_host_tokens` the change at a position depends on the tokens before it, so `advance`
    must have brought them, as Python integers, before `apply`. A runner that prepares a step while
    the last one still computes can apply only the others early.
    """

    needs_host_tokens: ClassVar[bool]

    def add(self, sequence: NewSequence) -> bool:
        """Take a sequence if its parameters ask for this processor; says whether it did."""

    def remove(self, seq_id: int) -> None:
        """Forget a sequence; unknown ones are fine."""

    def apply(self, logits: Tensor, rows: Sequence[SampleRow]) -> None:
        """Change the rows of known sequences in place. logits: [R, V] fp32, contiguous."""

    def advance(self, row: SampleRow, token_id: int) -> None:
        """The sequence's token at `row.position` is `token_id`."""


class ProcessorChain:
    """The processors in order, and who needs which."""

    def __init__(self, processors: Sequence[LogitsProcessor]) -> None:
        self._processors = tuple(processors)
        self._by_sequence: dict[int, list[LogitsProcessor]] = {}

    def add(self, sequence: NewSequence) -> None:
        takers = [processor for processor in self._processors if processor.add(sequence)]
        if takers:
            self._by_sequence[sequence.seq_id] = takers

    def remove(self, seq_id: int) -> None:
        for processor in self._by_sequence.pop(seq_id, ()):
            processor.remove(seq_id)

    def touches(self, rows: Sequence[SampleRow]) -> bool:
        """Whether any of the rows has a processor."""
        return any(row.seq_id in self._by_sequence for row in rows)

    def apply(self, logits: Tensor, rows: Sequence[SampleRow]) -> None:
        for processor in self._processors:
            processor.apply(logits, rows)

    def advance(self, row: SampleRow, token_id: int) -> None:
        for processor in self._by_sequence.get(row.seq_id, ()):
            if processor.needs_host_tokens:
                processor.advance(row, token_id)


class Penalties:
    """Repetition, frequency and presence penalties, with vLLM's arithmetic.

    For a token seen in prompt or output: a positive logit is divided by the repetition penalty,
    another one multiplied by it (Keskar et al. 2019, arXiv:1909.05858). Then, for a token seen
    `c > 0` times in the output: minus `c` times the frequency penalty, minus the presence penalty.
    """

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._histories: dict[int, _History] = {}

    def add(self, sequence: NewSequence) -> bool:
        p = sequence.sampling
        if p.repetition_penalty == 1.0 and not p.frequency_penalty and not p.presence_penalty:
            return False
        prompt = sequence.prompt_token_ids if p.repetition_penalty != 1.0 else ()
        self._histories[sequence.seq_id] = _History(p, _in_vocabulary(prompt, self._vocab_size))
        return True

    def remove(self, seq_id: int) -> None:
        self._histories.pop(seq_id, None)

    def apply(self, logits: Tensor, rows: Sequence[SampleRow]) -> None:
        taken = [
            (i, history)
            for i, row in enumerate(rows)
            if (history := self._histories.get(row.seq_id)) is not None
        ]
        for i, history in taken:
            history.rewind(rows[i].position)
        places = _places([(i, history.ids) for i, history in taken], logits.device)
        if places is None:
            return
        sizes = [len(history.ids) for _, history in taken]

        def spread(values: list[float]) -> Tensor:
            return torch.from_numpy(np.repeat(np.array(values), sizes)).to(logits.device)

        repetition = spread([history.params.repetition_penalty for _, history in taken])
        frequency = spread([history.params.frequency_penalty for _, history in taken])
        presence = spread([history.params.presence_penalty for _, history in taken])
        counts = np.concatenate([history.counts for _, history in taken])
        count = torch.from_numpy(counts).to(logits.device)
        # Double precision, then back into fp32's finite range: no penalty can make infinity or NaN.
        values = logits[places].to(torch.float64)
        changed = torch.where(values > 0, values / repetition, values * repetition)
        changed -= count * frequency + (count > 0) * presence
        logits[places] = _finite(changed, values)

    def advance(self, row: SampleRow, token_id: int) -> None:
        history = self._histories[row.seq_id]
        history.rewind(row.position)
        history.append(token_id)


class LogitBias:
    """Adds the request's biases: −100 practically bans a token, 100 practically forces it.

    As in vLLM and OpenAI's description it is plain addition, so it composes with the penalties.
    """

    needs_host_tokens: ClassVar[bool] = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._biases: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def add(self, sequence: NewSequence) -> bool:
        bias = {
            token_id: value
            for token_id, value in sequence.sampling.logit_bias.items()
            if 0 <= token_id < self._vocab_size
        }
        if not bias:
            return False
        ids = np.array(list(bias), dtype=np.int64)
        self._biases[sequence.seq_id] = (ids, np.array(list(bias.values()), dtype=np.float64))
        return True

    def remove(self, seq_id: int) -> None:
        self._biases.pop(seq_id, None)

    def apply(self, logits: Tensor, rows: Sequence[SampleRow]) -> None:
        taken = [
            (i, *self._biases[row.seq_id])
            for i, row in enumerate(rows)
            if row.seq_id in self._biases
        ]
        places = _places([(i, ids) for i, ids, _ in taken], logits.device)
        if places is None:
            return
        bias = torch.from_numpy(np.concatenate([values for _, _, values in taken]))
        values = logits[places].to(torch.float64)
        logits[places] = _finite(values + bias.to(logits.device), values)

    def advance(self, row: SampleRow, token_id: int) -> None:
        """Biases do not depend on the text."""


class MinTokens:
    """Forbids the tokens that would end a sequence before it has `min_tokens` tokens."""

    needs_host_tokens: ClassVar[bool] = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._limits: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def add(self, sequence: NewSequence) -> bool:
        ids = _in_vocabulary(sequence.suppressed_token_ids, self._vocab_size)
        if not sequence.sampling.min_tokens or not len(ids):
            return False
        self._limits[sequence.seq_id] = (sequence.sampling.min_tokens, ids)
        return True

    def remove(self, seq_id: int) -> None:
        self._limits.pop(seq_id, None)

    def apply(self, logits: Tensor, rows: Sequence[SampleRow]) -> None:
        early = [
            (i, self._limits[row.seq_id][1])
            for i, row in enumerate(rows)
            if row.seq_id in self._limits and row.position < self._limits[row.seq_id][0]
        ]
        places = _places(early, logits.device)
        if places is not None:
            logits[places] = -torch.inf

    def advance(self, row: SampleRow, token_id: int) -> None:
        """The position alone decides."""


class _History:
    """Distinct token ids of one sequence, each with the times it was generated.

    `ids` are the prompt's (where the repetition penalty needs them) followed by the generated ones
    in order of appearance; `counts` stands beside them. `rewind` undoes tokens that were generated
    but not kept, so a step that is run again sees what it saw the first time.
    """

    def __init__(self, params: SamplingParams, prompt: NDArray[np.int64]) -> None:
        self.params = params
        self._num_prompt_ids = len(prompt)
        self._ids = np.empty(max(16, 2 * len(prompt)), dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        self._ids[: len(prompt)] = prompt
        self._slots = {int(token_id): slot for slot, token_id in enumerate(prompt)}
        self._outputs: list[int] = []

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._counts[: len(self._slots)]

    def append(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[slot] = token_id
        self._counts[slot] += 1
        self._outputs.append(token_id)

    def rewind(self, num_outputs: int) -> None:
        """Go back to the first `num_outputs` generated tokens; nothing to do if that is all."""
        if num_outputs > len(self._outputs):
            raise InvariantViolation(
                f"sampling at position {num_outputs}, but only {len(self._outputs)} tokens of the "
                f"sequence are known"
            )
        for token_id in reversed(self._outputs[num_outputs:]):
            slot = self._slots[token_id]
            self._counts[slot] -= 1
            if self._counts[slot] == 0 and slot >= self._num_prompt_ids:
                del self._slots[token_id]
        del self._outputs[num_outputs:]


def _in_vocabulary(ids: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """Distinct ids that have a logit, ascending. Others can be neither drawn nor changed."""
    unique = np.unique(np.array(ids, dtype=np.int64))
    return unique[(unique >= 0) & (unique < vocab_size)]


def _places(
    entries: list[tuple[int, NDArray[np.int64]]], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Index tensors (row, id) of distinct places in the logits; None if there are none."""
    if not any(len(ids) for _, ids in entries):
        return None
    rows = np.repeat([row for row, _ in entries], [len(ids) for _, ids in entries])
    ids = np.concatenate([ids for _, ids in entries])
    return torch.from_numpy(rows).to(device), torch.from_numpy(ids).to(device)


def _finite(changed: Tensor, before: Tensor) -> Tensor:
    """fp32, kept finite, except that a token that was impossible stays so."""
    clamped = changed.clamp(-_MAX_LOGIT, _MAX_LOGIT).to(torch.float32)
    return clamped.masked_fill(before == -torch.inf, -torch.inf)
