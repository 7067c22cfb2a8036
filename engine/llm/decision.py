"""What the scheduler decides and what the executor answers: plain data without tensors.

A decision holds everything that an executor in another process would need, so that executors can be
local, tensor-parallel or remote without the scheduler knowing.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.errors import EngineError
from engine.types import SamplingParams, TokenLogprob

PENDING_TOKEN_ID = -1
"""Stands for the token that the step launched just before draws for the same sequence."""


@dataclass(slots=True)
class NewSequence:
    """First sight of a completion: sent once, before or with its first scheduled tokens; again
    only in place of a step that failed.

    The executor keeps its sampling state under `seq_id` until the id appears in
    `ScheduleDecision.finished`. Preemption does not end that state.
    """

    seq_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    """Already drawn when the request brought none."""
    index: int
    """Which of the request's `n` completions; part of the random key."""
    suppressed_token_ids: tuple[int, ...]
    """End-of-sequence and stop tokens: not to be drawn before `sampling.min_tokens` tokens."""
    adapter: str | None = None
    guides: int | None = None
    """Of a sequence that has the negative prompt: the one that it guides."""


class GroupBlocks(NamedTuple):
    """A sequence's block table of one layer group. Read only."""

    block_ids: list[int]
    """From block number `num_passed` of its text on."""
    num_passed: int = 0
    """Blocks before them, which no token of the step looks at."""


@dataclass(slots=True)
class ScheduledSequence:
    """One completion's share of this step: tokens `start .. start + len(token_ids)` of its text.

        prompt and output   [ computed already | token_ids of this step | later ]
                            0 ............. start ....... start + len

    A token is drawn from each of the last `num_draws` rows. The first of these is that of the last
    known token; the ones behind it are computed for *draft* tokens, which nobody knows to follow:

        token_ids   …  a   x   y        a is known, x and y are drafts
        drawn          x'  y'  z        x' follows a; y' counts if x' is x, z if y' is y as well

    What counts is what steps of one draw each would have brought. The keys and values of the other
    rows are no text's, and their slots are written again.
    """

    seq_id: int
    token_ids: list[int]
    """The last one may be `PENDING_TOKEN_ID`: only the executor knows it yet."""
    start: int
    blocks: list[GroupBlocks]
    """Per layer group, long enough for `start + len(token_ids)` tokens."""
    num_draws: int
    num_output_tokens: int
    """Tokens generated so far; the position of the random number that the first draw would use."""
    prompt_logprobs: bool = False
    """Score this chunk's tokens against the next prompt tokens."""
    follows: int | None = None
    """Of a candidate, in contrastive search: the sequence whose last row its text goes on from,
    with one token more. Only of a sequence that is no candidate is the text certain."""
    is_apart: bool = False
    """Few rows that are to be computed as decodes are, so that the step can be replayed."""

    @property
    def is_decode(self) -> bool:
        """Each of its rows is computed as if it were alone: all of them draw, or there is one only,
        or it is wanted so."""
        return self.is_apart or len(self.token_ids) == max(self.num_draws, 1)

    @property
    def drafts(self) -> list[int]:
        """The tokens of its last rows that are none of its text's yet."""
        return self.token_ids[len(self.token_ids) - max(self.num_draws, 1) + 1 :]


@dataclass(slots=True)
class ScheduleDecision:
    """One step. Executors apply it in this order: finished, new, copies, forward, sampling.

    Steps take effect in the order in which they were launched. A block that is freed while a
    launched step still writes to it can thus be given away: its next owner writes later.
    """

    new: list[NewSequence] = field(default_factory=list)
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Copy-on-write: (source block, destination block), to be copied whole first."""
    finished: list[int] = field(default_factory=list)
    """Sequences that ended since the last decision; their state, if any, can be dropped."""
    blocks_next: bool = False
    """The next decision cannot be made before this one's outcome is committed."""

    @property
    def num_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.scheduled)


@dataclass(slots=True)
class SequenceOutput:
    """What a step brought one scheduled sequence."""

    seq_id: int
    token_ids: list[int] = field(default_factory=list)
    """Those that follow its text: at least one if it draws, does not wait and there is no error, at
    most `num_draws`."""
    logprobs: list[TokenLogprob] | None = None
    """One per token id, when its request asks for them."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Scores of prompt tokens `start + 1 ..` that this chunk could judge."""
    forced: list[int] = field(default_factory=list)
    """Tokens of which is certain that they follow those."""
    similarity: float | None = None
    """Of a candidate: the greatest cosine of its hidden state and those of the text before it."""
    error: EngineError | str | None = None
    """What failed behind `token_ids` (for example non-finite logits), as an error if the request
    itself is to blame; other sequences are fine."""
    is_waiting: bool = False
    """Nothing can be drawn yet: preempt it, so that it is computed again and tries again."""


@dataclass(slots=True)
class StepOutput:
    """The executor's answer, one entry per scheduled sequence, in the decision's order."""

    outputs: list[SequenceOutput]
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0
