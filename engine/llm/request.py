"""A request inside the engine: its `n` sequences, what each has computed, and when it ends.

There are no phases. A sequence has known tokens (prompt and output so far) and computed ones (their
keys and values are in its blocks); steps let the second number catch up with the first:

    token_ids   [ prompt ............ | output ... ]
                [ computed ...... | missing ....... ]
    a new token is drawn by the step that leaves nothing missing

Steps may be launched before the outcome of the one before is known. What a launched step computes
counts as computed and what it draws as known, though its id is pending:

    known       [ token_ids ................. | pending ]
                [ computed | in flight ...... | missing ]
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from engine.config import ResolvedConfig
from engine.errors import (
    ContextLengthExceeded,
    EngineError,
    Failure,
    InvalidParameter,
    OutOfBlocks,
)
from engine.llm.decision import (
    PENDING_TOKEN_ID,
    GroupBlocks,
    NewSequence,
    ScheduledSequence,
    SequenceOutput,
)
from engine.llm.prefix_cache import extend_chain
from engine.llm.repetition import RepetitionDetector
from engine.llm.sequence_blocks import SequenceBlocks
from engine.types import (
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)


class Status(Enum):
    HELD_BACK = auto()
    """A further completion of a request whose prompt is not computed yet."""
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Group(Protocol):
    """Sequences of a request that run as one: they start, are preempted and end together, and what
    a step brings each of them is decided on when all have it. None of them is a completion by
    itself; the group says which texts are.

    One sequence computes the prompt, the others have no tokens until they go on from a text.
    """

    @property
    def sequences(self) -> "list[Sequence]":
        """Its own, by rank."""
        ...

    @property
    def sampling(self) -> SamplingParams:
        """What the executor is told of each sequence."""
        ...

    @property
    def keeps_outcome(self) -> bool:
        """Whether what the last step has brought is there after `restart`, too."""
        ...

    def waits(self, sequence: "Sequence") -> bool:
        """Whether it has nothing to run: no text yet, or an outcome while others have none."""
        ...

    def note(self, sequence: "Sequence", result: SequenceOutput) -> bool:
        """Take in what a step has brought a sequence.

        Returns:
            Whether all have an outcome now: `advance` is to be called.
        """
        ...

    def advance(self) -> list[TokenEvent]:
        """Give each sequence its next token, perhaps behind another one's text.

        Returns:
            What clients are to know: that it has begun, or the completions. The group is over with
            these.
        """
        ...

    def restart(self) -> None:
        """Forget outcomes: what was computed is computed again."""
        ...

    def leave_out(self, index: int) -> bool:
        """Nobody waits for that completion any more; says whether that is true of all of its
        own."""
        ...

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """The last events, after an error."""
        ...


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """What the sequences of one request share."""

    request: GenerateRequest
    arrival: int
    """Position in the order of arrival."""
    arrival_time_s: float
    seed: int
    eos_token_ids: frozenset[int]
    """Those that end a sequence: none under `ignore_eos`."""
    chain_root: bytes
    num_slots: int
    """Tokens that the pool has room for in each of its sequences, should nothing else run."""
    groups: list[Group] = field(default_factory=list)
    """All sequences are in one of these, or, where there is none, run independently."""
    sequences: list["Sequence"] = field(default_factory=list)
    num_unfinished: int = 0
    was_started: bool = False
    """One of its sequences has run."""
    holds_back: bool = False
    """Its further completions wait for the first one to have computed the prompt."""
    draws_by_history: bool = False
    """What it may draw depends on the tokens before, which the host must know by then."""
    prepared: object = None
    """What the executor has made ahead for its sequences: kept while they may be announced."""

    def __post_init__(self) -> None:
        self.draws_by_history = self.request.sampling.reads_text

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a sequence."""
        return self.eos_token_ids.union(self.request.sampling.stop_token_ids)

    def without(self, index: int | None) -> list["Sequence"]:
        """The sequences that end when nobody waits for that completion any more; None: for any."""
        if index is None:
            return self.sequences
        if not self.groups:
            return [s for s in self.sequences if s.index == index]
        ended = [group for group in self.groups if group.leave_out(index)]
        return [sequence for group in ended for sequence in group.sequences]

    def holds_up(self, scheduled: ScheduledSequence) -> bool:
        """Whether what follows a step of one of its sequences depends on the step's outcome."""
        if scheduled.prompt_logprobs or scheduled.num_draws > 1:
            return True
        return scheduled.num_draws > 0 and self.draws_by_history

    def donor(self) -> "Sequence | None":
        """A running sequence whose table holds the whole prompt, for others to fork."""
        for sequence in self.sequences:
            if sequence.status is Status.RUNNING and sequence.num_computed >= self.prompt_len:
                return sequence
        return None


@dataclass(eq=False, slots=True)
class Sequence:
    """One completion of a request."""

    seq_id: int
    owner: ActiveRequest
    index: int
    rank: tuple[int, ...]
    """Who goes first: the smaller. Unique."""
    table: SequenceBlocks
    token_ids: list[int]
    """Prompt and output: what was accepted, never a draft. Only appended to, but in a group."""
    max_num_tokens: int
    """Length at which it ends whatever it says."""
    last_num_tokens: int
    """Length at which it ends or, since the pool holds no more, fails: nothing runs behind it."""
    status: Status = Status.HELD_BACK
    is_announced: bool = False
    """The executor was told of it, by a step that did not fail."""
    is_known: bool = False
    """The executor may hold state of it."""
    num_in_flight: int = 0
    """Tokens that launched steps compute and whose outcome is not committed."""
    num_pending: int = 0
    """Tokens that launched steps draw for certain: they follow `token_ids`."""
    group: Group | None = None
    """None: it runs independently of the others."""
    forced_token_ids: list[int] = field(default_factory=list)
    """They follow `token_ids` for certain, and are to be drawn all the same."""
    num_cached_tokens: int = 0
    chain: list[bytes] = field(default_factory=list)
    """Hashes of the full blocks of `token_ids`, as far as they were needed."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Scores so far, the first token's None included; None if not asked for, or once sent."""
    stop_token_id: int | None = None
    detector: RepetitionDetector | None = None
    num_prompt_tokens: int = 0
    guides: int | None = None
    """The sequence that it is there for, if it has a negative prompt (`NewSequence.guides`)."""
    follows: int | None = None
    """See `ScheduledSequence`."""
    queue_time_s: float | None = None
    """Until it is sent with the first event."""

    @property
    def together(self) -> list["Sequence"]:
        """Those that run as one, by rank: its group, or itself alone."""
        return [self] if self.group is None else self.group.sequences

    @property
    def waits_for_others(self) -> bool:
        """It has nothing to run until the others of its group have got as far."""
        return self.group is not None and self.group.waits(self)

    @property
    def has_moved_on(self) -> bool:
        """Its last step, one that draws, has brought it further for good."""
        return self.group is None or (self.group.keeps_outcome and not self.group.waits(self))

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_known(self) -> int:
        """Tokens that can be run: those of its text and those that launched steps draw."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are there for certain: their steps are committed."""
        return self.table.num_tokens - self.num_in_flight

    @property
    def num_missing(self) -> int:
        """Known tokens that no step computes yet: at least 1, until only an outcome is missing."""
        if self.num_pending and self.num_known >= self.last_num_tokens:
            return 0
        return len(self.token_ids) + self.num_pending - self.table.num_tokens

    @property
    def num_draftable(self) -> int:
        """Drafts of which each could be drawn, with a token behind the last one; none where what
        may come depends on how likely the tokens before were."""
        if self.owner.request.sampling.mirostat:
            return 0
        return max(0, self.last_num_tokens - self.num_known - 1)

    @property
    def scores_prompt(self) -> bool:
        """Its prompt must be run, cached or not, to be scored."""
        return self.prompt_logprobs is not None

    @property
    def may_skip(self) -> bool:
        """Whether what is cached of its text need not be run: nothing but keys and values is
        wanted of it."""
        return not self.scores_prompt and self.owner.request.sampling.contrast is None

    def extend_chain(self, block_size: int) -> list[bytes]:
        """Block hashes of all known tokens."""
        return extend_chain(self.chain, self.owner.chain_root, self.token_ids, block_size)

    def restart(self) -> None:
        """Forget what was computed, keep what was said."""
        self.table.clear()
        if self.group is not None:
            self.group.restart()
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    def start_over(self, table: SequenceBlocks) -> None:
        """Forget steps on their way too: none of them will land."""
        self.table = table
        self.num_in_flight = self.num_pending = 0
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        # With output, a step that brought it to the executor is over; in a group that may have been
        # another sequence's.
        self.is_announced = self.is_announced and self.num_output_tokens > 0
        if self.group is not None:
            self.group.restart()
            self.is_announced = False

    def announce(self) -> NewSequence:
        """For the executor: once, and again if the step that brought it failed."""
        self.is_announced = self.is_known = True
        owner = self.owner
        sampling = owner.request.sampling if self.group is None else self.group.sampling
        return NewSequence(
            seq_id=self.seq_id,
            prompt_token_ids=owner.request.prompt_token_ids,
            sampling=sampling,
            seed=owner.seed,
            index=self.index,
            suppressed_token_ids=(*sorted(owner.eos_token_ids), *sampling.stop_token_ids),
            adapter=owner.request.adapter,
            guides=self.guides,
        )

    def go_on_from(self, other: "Sequence") -> None:
        """Take over another one's text and share its blocks, in place of its own. All that it has
        is computed, and nothing of either is in flight."""
        self.table.clear()
        self.table = other.table.fork(other.table.num_tokens)
        self.token_ids = other.token_ids.copy()
        self.chain = other.chain.copy()

    def swap_text(self, other: "Sequence") -> None:
        """Exchange texts and blocks. Nothing of either is in flight."""
        self.table, other.table = other.table, self.table
        self.token_ids, other.token_ids = other.token_ids, self.token_ids
        self.chain, other.chain = other.chain, self.chain

    def drop_text(self) -> None:
        """Have none, until it goes on from another one's."""
        self.table.clear()
        self.token_ids = []
        self.chain = []

    def launch(self, num_tokens: int, drafts: list[int]) -> ScheduledSequence:
        """Its share of a step: the next `num_tokens` missing tokens, which count as run then, and
        drafts behind the last of them, for which there is room. No step follows one with drafts
        before that is committed."""
        start, known, owner = self.table.num_tokens, self.num_known, self.owner
        end = start + num_tokens
        token_ids = self.token_ids[start:end]
        if len(token_ids) < num_tokens:
            token_ids.append(PENDING_TOKEN_ID)
        draws = end == known and owner.request.sampling.max_tokens > 0
        token_ids += drafts
        scheduled = ScheduledSequence(
            seq_id=self.seq_id,
            token_ids=token_ids,
            start=start,
            # Copied: an abort may empty the tables meanwhile.
            blocks=[
                GroupBlocks(table.block_ids.copy(), table.num_passed) for table in self.table.tables
            ],
            num_draws=len(token_ids) - num_tokens + 1 if draws else 0,
            num_output_tokens=known - self.num_prompt_tokens,
            prompt_logprobs=self.scores_prompt and start < owner.prompt_len - 1,
            follows=self.follows,
        )
        self.table.advance(start + len(token_ids))
        self.num_in_flight += len(token_ids)
        self.num_pending += draws
        return scheduled

    def land(self, scheduled: ScheduledSequence) -> None:
        """The step of this share is over; its outcome follows with `take` or `fail`."""
        self.num_in_flight -= len(scheduled.token_ids)
        self.num_pending -= scheduled.num_draws > 0

    def take(self, scheduled: ScheduledSequence, result: SequenceOutput) -> TokenEvent | None:
        """Note a step's outcome: scores of the prompt, drawn tokens.

        Returns:
            What the client is to know, if anything: tokens, or the end.
        """
        self.note_scores(result)
        num_taken, reason = self.accept(result.token_ids)
        self.forced_token_ids = result.forced
        if scheduled.num_draws > num_taken:
            self.rewind(scheduled.num_draws - num_taken)
        if num_taken == 0 and reason is None:
            return None
        return self.report(
            token_ids=result.token_ids[:num_taken],
            logprobs=result.logprobs[:num_taken] if result.logprobs is not None else None,
            prompt_logprobs=self.take_scores(),
            finish_reason=reason,
            stop_token_id=self.stop_token_id,
        )

    def note_scores(self, result: SequenceOutput) -> None:
        """Of the prompt, from a step's outcome."""
        if self.prompt_logprobs is not None and result.prompt_logprobs:
            self.prompt_logprobs += result.prompt_logprobs

    def take_scores(self) -> list[TokenLogprob | None] | None:
        """Those of the whole prompt, once: they are sent, and need not be made again."""
        scores, self.prompt_logprobs = self.prompt_logprobs, None
        return scores

    def accept(self, token_ids: list[int]) -> tuple[int, FinishReason | None]:
        """Append tokens up to its end.

        Returns:
            How many there were until then, and why it ends, if it does.
        """
        reason = self._end_without_token()
        for num_taken, token_id in enumerate(token_ids, 1):
            reason = self._append(token_id)
            if reason is not None:
                return num_taken, reason
        return len(token_ids), reason

    def rewind(self, num_tokens: int) -> None:
        """Take back the last tokens that were computed, and blocks that hold nothing else: they
        turned out not to be its text's. Nothing of it is in flight."""
        self.table.truncate(self.table.num_tokens - num_tokens)

    def fail(self, error: EngineError) -> TokenEvent:
        """Its last event, after an error."""
        return self.report(finish_reason=FinishReason.ERROR, failure=Failure.of(error))

    def report(self, **contents: Any) -> TokenEvent:
        """News of the completion of its index."""
        queue_time_s, self.queue_time_s = self.queue_time_s, None
        return TokenEvent(
            request_id=self.owner.request.request_id,
            index=self.index,
            num_cached_tokens=self.num_cached_tokens,
            queue_time_s=queue_time_s,
            repetition=None if self.detector is None else self.detector.longest,
            **contents,
        )

    def _end_without_token(self) -> FinishReason | None:
        """A request that only scores its prompt ends once that is computed."""
        is_computed = self.num_computed == len(self.token_ids)
        is_over = is_computed and self.owner.request.sampling.max_tokens == 0
        return FinishReason.LENGTH if is_over else None

    def _append(self, token_id: int) -> FinishReason | None:
        self.token_ids.append(token_id)
        is_repeating = self.detector is not None and self.detector.append(token_id)
        sampling = self.owner.request.sampling
        may_end = self.num_output_tokens > sampling.min_tokens
        # A structure that is complete allows nothing but the end, even before `min_tokens`.
        if token_id in self.owner.eos_token_ids and (may_end or sampling.structure is not None):
            return FinishReason.STOP
        if may_end and token_id in sampling.stop_token_ids:
            self.stop_token_id = token_id
            return FinishReason.STOP
        if len(self.token_ids) >= self.max_num_tokens:
            return FinishReason.LENGTH
        if is_repeating and may_end and self.detector is not None and self.detector.ends_text:
            return FinishReason.REPETITION
        return None


def check_request(
    request: GenerateRequest, config: ResolvedConfig, vocab_size: int, capacity: int
) -> None:
    """Refuse what would fail later. The server checks first, and the engine does not trust it.

    A prompt that leaves room for one token is taken, even if `max_tokens` would go past the
    context: such a request ends with `length` there.

    Args:
        capacity: tokens that the KV pool holds of one sequence.

    Raises:
        InvalidParameter, ContextLengthExceeded, OutOfBlocks
    """
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidParameter("the prompt is empty; send at least one token", param="prompt")
    check_token_ids(prompt, vocab_size, "prompt")
    check_token_ids(sampling.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(sampling.logit_bias, vocab_size, "logit_bias")
    allowed = sampling.allowed_token_ids
    if allowed is not None and (not allowed or len(allowed) % 4):
        raise InvalidParameter(
            "allowed_token_ids are whole ids of 32 bits, one at least", param="allowed_token_ids"
        )
    if sampling.structure is not None and sampling.ignore_eos:
        raise InvalidParameter(
            f"ignore_eos cannot be combined with {sampling.structure.param}, whose text ends where "
            "it is complete; leave one of them out",
            param="ignore_eos",
        )
    for name, low in (("n", 1), ("max_tokens", 0), ("min_tokens", 0)):
        if getattr(sampling, name) < low:
            raise InvalidParameter(
                f"{name} is {getattr(sampling, name)}; it must be at least {low}", param=name
            )
    shortest = len(prompt) + min(sampling.max_tokens, 1)
    if shortest > config.max_model_len:
        raise ContextLengthExceeded.beyond(
            config.max_model_len,
            f"the prompt has {len(prompt)} tokens and max_tokens is {sampling.max_tokens}. "
            "Please shorten the prompt, or raise max_model_len.",
            param="prompt",
        )
    if len(prompt) > capacity:
        raise OutOfBlocks(
            f"the prompt has {len(prompt)} tokens; the KV pool holds {capacity}; "
            f"shorten the prompt or raise kv_cache_memory_gib",
            param="prompt",
        )


def check_token_ids(
    token_ids: list[int] | tuple[int, ...] | dict[int, float], vocab_size: int, param: str
) -> None:
    """
    Raises:
        InvalidParameter: names an id that the model has no row for.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(t for t in token_ids if not 0 <= t < vocab_size)
        raise InvalidParameter(
            f"{param} has token id {bad}; the model's ids are 0 to {vocab_size - 1}", param=param
        )
