"""What the scheduler decides and what the executor answers: plain data without tensors.

A decision holds everything that an executor in another process would need, so that executors can be
local, tensor-parallel or remote without the scheduler knowing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.contract.generate import TokenLogprob
from engine.contract.prompt_states import StatePart
from engine.contract.sampling_params import SamplingParams
from engine.errors import EngineError

PENDING_TOKEN_ID = -1
"""Stands for the token that the step launched just before draws for the same sequence."""


@dataclass(slots=True)
class NewSequence:
    """Announces a completion to the executor. It is sent once, with or before its first scheduled
    tokens, and again only in place of a step that failed.

    The executor keeps its sampling state under `seq_id` until the id appears in
    `ScheduleDecision.finished`. Preemption does not end that state.
    """

    seq_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    """The request's seed, or one that was drawn for it."""
    index: int
    """The index among the request's `n` completions; part of the random key."""
    suppressed_token_ids: tuple[int, ...]
    """End-of-sequence and stop tokens, which must not be drawn before `sampling.min_tokens`
    tokens."""
    adapter: str | None = None
    guides: int | None = None
    """For a sequence with a negative prompt, the id of the sequence that it guides."""


class GroupBlocks(NamedTuple):
    """A sequence's block table of one layer group, read only."""

    block_ids: list[int]
    """The blocks from number `num_passed` of its text on."""
    num_passed: int = 0
    """The number of blocks before them, which no token of the step attends to."""


class RecurrentSlots(NamedTuple):
    """The slots of a sequence's recurrent state in a step
    (`kernels.shared.recurrent_batch.RecurrentBatch`)."""

    read: int | None
    """None for a text without computed tokens."""
    write: int


class StateRows(NamedTuple):
    """Rows whose inputs are states of a part of the prompt instead of looked-up embeddings."""

    digest: bytes
    """The digest of the part's content."""
    first_state: int
    """The number of the part's states before them."""
    first_row: int
    """The number of rows of the share, or of the step, before them."""
    num_rows: int


class AdvancedPart(NamedTuple):
    """A part whose states are not finished in this step."""

    part: StatePart
    num_slices: int
    """The slices of the encoder's work that the step does."""
    seq_id: int
    """A sequence that waits for it."""


@dataclass(slots=True)
class ScheduledSequence:
    """One completion's share of this step: tokens `start .. start + len(token_ids)` of its text.

        prompt and output   [ computed already | token_ids of this step | later ]
                            0 ............. start ....... start + len

    A token is drawn from each of the last `num_draws` rows. The first of these belongs to the last
    known token. The rows behind it are computed for *draft* tokens, which may or may not follow:

        token_ids   …  a   x   y        a is known, x and y are drafts
        drawn          x'  y'  z        x' follows a; y' counts if x' is x, z if y' is y as well

    The tokens that count are those that steps of one draw each would have brought. The keys and
    values of the other rows belong to no text, and their slots are written again.
    """

    seq_id: int
    token_ids: list[int]
    """The last one may be `PENDING_TOKEN_ID`: only the executor knows it yet."""
    start: int
    blocks: list[GroupBlocks]
    """One table per layer group, long enough for `start + len(token_ids)` tokens."""
    num_draws: int
    num_output_tokens: int
    """The number of tokens generated so far, which is also the position of the first draw's random
    number."""
    prompt_logprobs: bool = False
    """Whether to score this chunk's tokens against the next prompt tokens."""
    follows: int | None = None
    """For a candidate in contrastive search, the sequence whose last row its text continues with
    one more token. The text of a sequence is certain only if it is not a candidate."""
    states: Sequence[StateRows] = ()
    """The rows that are states, in order."""
    positions: NDArray[np.int64] | None = None
    """Shape [3, len(token_ids)]: the rows' positions in time, height and width; None if they are
    those of the tokens in the text."""
    recurrent: RecurrentSlots | None = None
    """The slots of its recurrent state; None if the model has none."""
    is_apart: bool = False
    """Whether these few rows are computed like decodes, so that the step can be replayed."""

    @property
    def is_decode(self) -> bool:
        """Whether each of its rows is computed as if it were alone: because all of them draw, there
        is only one, or `is_apart` asks for it."""
        return self.is_apart or len(self.token_ids) == max(self.num_draws, 1)

    @property
    def drafts(self) -> list[int]:
        """The tokens of its last rows that are not part of its text yet."""
        return self.token_ids[len(self.token_ids) - max(self.num_draws, 1) + 1 :]


@dataclass(slots=True)
class ScheduleDecision:
    """One step. Executors apply it in this order: finished, new, copies, dropped, encoded,
    advanced, forward, sampling.

    Steps take effect in the order in which they were launched. A block that is freed while a
    launched step still writes to it can thus be given away: its next owner writes later.
    """

    new: list[NewSequence] = field(default_factory=list)
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """The copy-on-write pairs (source block, destination block), to be copied whole first."""
    finished: list[int] = field(default_factory=list)
    """Sequences that ended since the last decision; their state, if any, can be dropped."""
    dropped: list[bytes] = field(default_factory=list)
    """Digests of parts whose states are not kept any longer; they may be unknown."""
    encoded: list[StatePart] = field(default_factory=list)
    """Parts whose states are finished in this step and kept until they are dropped."""
    advanced: AdvancedPart | None = None
    """A part whose states are needed soon; what is done of them is kept until it is dropped."""
    num_slices: int = 0
    """The slices of the encoder's work in this step."""
    blocks_next: bool = False
    """Whether the next decision must wait until this one's outcome is committed."""

    @property
    def num_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.scheduled)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduled) or self.advanced is not None


@dataclass(slots=True)
class SequenceOutput:
    """The outcome of a step for one scheduled sequence."""

    seq_id: int
    token_ids: list[int] = field(default_factory=list)
    """Tokens that follow the sequence's text: at most `num_draws`, and at least one if it draws,
    does not wait and has no error."""
    logprobs: list[TokenLogprob] | None = None
    """The log-probabilities, one per token id, if the request asks for them."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Scores of prompt tokens `start + 1 ..` that this chunk could judge."""
    forced: list[int] = field(default_factory=list)
    """Tokens that are certain to follow `token_ids`."""
    similarity: float | None = None
    """For a candidate, the greatest cosine between its hidden state and those of the text before
    it."""
    error: EngineError | str | None = None
    """What failed after `token_ids`, such as non-finite logits: an error if the request itself
    caused it, otherwise a message. Other sequences are not affected."""
    is_waiting: bool = False
    """Whether nothing can be drawn yet; the sequence is then preempted and tries again when it is
    computed again."""


@dataclass(slots=True)
class StepOutput:
    """The executor's answer, with one entry per scheduled sequence in the decision's order."""

    outputs: list[SequenceOutput]
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0


@dataclass(slots=True, frozen=True)
class SampleRow:
    """Identifies whose logits a row holds."""

    seq_id: int
    position: int
    """The number of tokens generated so far, which is the index of the token to be drawn."""
    draft: int | None = None
    """The previous token, if it is a draft (`ScheduledSequence`). The row
    before is then the same sequence's, and this row is void unless that row draws this token."""
