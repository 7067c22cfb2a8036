"""Changes logits before a token is chosen: penalties, biases, forbidden tokens.

A processor serves the sequences that asked for it and touches no other row. It lists which logits
must change (`kernels.EditLists`), and the sampling operation changes them. Its state is sparse (the
ids a sequence has seen), lives from `add` to `remove`, and survives preemption. The sampler owns
one chain and calls it on the loop thread.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from kernels import EditLists


class LogitsProcessor(Protocol):
    """One kind of change to logits.

    With `needs_host_tokens`, the change at a position depends on the tokens before it, so `advance`
    must have brought them, as Python integers, before `edit`. Only other processors can be asked
    early, while the last step still computes.
    """

    needs_host_tokens: ClassVar[bool]

    def add(self, sequence: NewSequence) -> bool:
        """Take a sequence if its parameters ask for this processor. Returns whether they do."""

    def remove(self, seq_id: int) -> None:
        """Forget a sequence; unknown ids are ignored."""

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        """Add the changes for one row of a sequence that was taken, number `place` of the call's
        rows. Anything known about tokens from the row's position on is void."""

    def advance(self, row: SampleRow, token_id: int) -> None:
        """Note that the sequence's token at `row.position` is `token_id`, or is assumed to be for
        the rows behind it. Once the token is drawn this is called again, perhaps with another
        one."""


class ProcessorChain:
    """The processors, and which sequence needs which."""

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

    def edit(self, edits: EditLists, rows: Sequence[SampleRow]) -> None:
        """Add the changes for all rows; the rows of one sequence are in order."""
        for place, row in enumerate(rows):
            takers = self._by_sequence.get(row.seq_id)
            if takers is None:
                continue
            if row.draft is not None:
                self.advance(SampleRow(row.seq_id, row.position - 1), row.draft)
            for processor in takers:
                processor.edit(edits, place, row)

    def advance(self, row: SampleRow, token_id: int) -> None:
        for processor in self._by_sequence.get(row.seq_id, ()):
            if processor.needs_host_tokens:
                processor.advance(row, token_id)


class Penalties:
    """Repetition, frequency and presence penalties, with vLLM's arithmetic.

    The repetition penalty also counts tokens of the prompt; `kernels.sample_tokens.rows.LogitEdits`
    has the formulas. `repeat_last_n` is llama.cpp's window; within it the other two still count
    generated tokens only.
    """

    needs_host_tokens: ClassVar[bool] = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._histories: dict[int, _History] = {}

    def add(self, sequence: NewSequence) -> bool:
        p = sequence.sampling
        if p.repetition_penalty == 1.0 and not p.frequency_penalty and not p.presence_penalty:
            return False
        if p.repeat_last_n == 0:
            return False
        history = _History(p, sequence.prompt_token_ids, self._vocab_size)
        self._histories[sequence.seq_id] = history
        return True

    def remove(self, seq_id: int) -> None:
        self._histories.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        history = self._histories[row.seq_id]
        history.rewind(row.position)
        edits.penalise(
            place,
            # Copied, as later rows may continue from drafts.
            history.ids.copy(),
            history.counts.copy(),
            repetition=history.params.repetition_penalty,
            frequency=history.params.frequency_penalty,
            presence=history.params.presence_penalty,
        )

    def advance(self, row: SampleRow, token_id: int) -> None:
        history = self._histories[row.seq_id]
        if not history.has(row.position, token_id):
            history.rewind(row.position)
            history.append(token_id)


class LogitBias:
    """Adds the request's biases: −100 practically bans a token, 100 practically forces it.

    As in vLLM and OpenAI's description, biases are plainly added, so they combine with penalties.
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

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        edits.add(place, *self._biases[row.seq_id])

    def advance(self, row: SampleRow, token_id: int) -> None:
        """Do nothing: biases do not depend on the text."""


class MinTokens:
    """Forbids tokens that would end a sequence before it has `min_tokens` tokens. For sequences
    with a structure, `engine.llm.structure.mask` does this."""

    needs_host_tokens: ClassVar[bool] = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._limits: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def add(self, sequence: NewSequence) -> bool:
        ids = _in_vocabulary(sequence.suppressed_token_ids, self._vocab_size)
        if not sequence.sampling.min_tokens or not len(ids) or sequence.sampling.structure:
            return False
        self._limits[sequence.seq_id] = (sequence.sampling.min_tokens, ids)
        return True

    def remove(self, seq_id: int) -> None:
        self._limits.pop(seq_id, None)

    def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
        min_tokens, ids = self._limits[row.seq_id]
        if row.position < min_tokens:
            edits.forbid(place, ids)

    def advance(self, row: SampleRow, token_id: int) -> None:
        """Do nothing: only the position matters."""


class _History:
    """The distinct token ids among the last tokens of one sequence, and how often each was
    generated.

    The window holds the last `repeat_last_n` tokens of prompt and text, so each new token may push
    one out. `rewind` undoes tokens that were generated but not kept, so that a repeated step sees
    the same window. Both take constant time per token. The prompt's tokens count only for the
    repetition penalty.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self.params = params
        self._vocab_size = vocab_size
        self._prompt = prompt
        self._outputs: list[int] = []
        window: Sequence[int] = ()
        if params.repetition_penalty != 1.0:
            window = prompt if params.repeat_last_n < 0 else prompt[self._start() :]
        ids, times = np.unique(np.array(window, dtype=np.int64), return_counts=True)
        known = (ids >= 0) & (ids < vocab_size)
        ids, times = ids[known], times[known]
        size = max(16, 2 * len(ids))
        self._ids, self._counts, self._uses = np.zeros((3, size), dtype=np.int64)
        """By slot: a token, how often it was generated in the window, and how often it occurs
        there."""
        self._ids[: len(ids)], self._uses[: len(ids)] = ids, times
        self._slots = {token_id: slot for slot, token_id in enumerate(ids.tolist())}

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._counts[: len(self._slots)]

    def has(self, position: int, token_id: int) -> bool:
        """Whether `token_id` is the generated token at `position`."""
        return position < len(self._outputs) and self._outputs[position] == token_id

    def append(self, token_id: int) -> None:
        self._outputs.append(token_id)
        self._count(len(self._prompt) + len(self._outputs) - 1, 1)
        self._count(self._start() - 1, -1)

    def rewind(self, num_outputs: int) -> None:
        """Go back to the first `num_outputs` generated tokens, if there are more."""
        if num_outputs > len(self._outputs):
            raise InvariantViolation(
                f"sampling at position {num_outputs}, but only {len(self._outputs)} tokens of the "
                f"sequence are known"
            )
        while len(self._outputs) > num_outputs:
            self._count(self._start() - 1, 1)
            self._count(len(self._prompt) + len(self._outputs) - 1, -1)
            self._outputs.pop()

    def _start(self) -> int:
        """The place of the window's first token."""
        size, last_n = len(self._prompt) + len(self._outputs), self.params.repeat_last_n
        return 0 if last_n < 0 else max(0, size - last_n)

    def _count(self, place: int, step: int) -> None:
        """Count the token at a place, if there is one, as entering the window or leaving it."""
        place -= len(self._prompt)
        if place >= 0:
            token_id = self._outputs[place]
        elif place >= -len(self._prompt) and self.params.repetition_penalty != 1.0:
            token_id = self._prompt[place]
        else:
            return
        if not 0 <= token_id < self._vocab_size:
            return
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids, self._counts, self._uses = (
                np.concatenate((one, np.zeros_like(one)))
                for one in (self._ids, self._counts, self._uses)
            )
        self._ids[slot] = token_id
        self._uses[slot] += step
        self._counts[slot] += step if place >= 0 else 0
        if not self._uses[slot]:
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        """Free a slot and move the last one there, so that the slots in use stay together."""
        last = len(self._slots) - 1
        del self._slots[int(self._ids[slot])]
        if slot < last:
            self._slots[int(self._ids[last])] = slot
        for one in (self._ids, self._counts, self._uses):
            one[slot], one[last] = one[last], 0


def _in_vocabulary(ids: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """Return the distinct ids that have a logit, ascending. Other ids can be neither drawn nor
    changed."""
    unique = np.unique(np.array(ids, dtype=np.int64))
    return unique[(unique >= 0) & (unique < vocab_size)]
