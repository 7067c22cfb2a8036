"""A request inside the engine: its `n` sequences, what each has computed, and when it ends.

There are no phases. A sequence has known tokens (prompt and output so far) and computed tokens
(whose keys and values are in its blocks). Steps let the second number catch up with the first:

    token_ids   [ prompt ............ | output ... ]
                [ computed ...... | missing ....... ]
    a new token is drawn by the step that leaves nothing missing

A step may be launched before the previous step's outcome is known. What a launched step computes
counts as computed, and what it draws as known, though its id is pending:

    known       [ token_ids ................. | pending ]
                [ computed | in flight ...... | missing ]
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from engine.contract.generate import GenerateRequest, Pin, TokenEvent, TokenLogprob
from engine.contract.phase import Phase
from engine.contract.prompt_states import StatePart
from engine.contract.request import FinishReason
from engine.contract.sampling_params import SamplingParams
from engine.errors import ContextLengthExceeded, EngineError, Failure, OutOfBlocks
from engine.llm.axis_positions import axis_positions
from engine.llm.cache.prefix_cache import extend_chain
from engine.llm.cache.sequence_blocks import SequenceBlocks
from engine.llm.decision import (
    PENDING_TOKEN_ID,
    GroupBlocks,
    NewSequence,
    RecurrentSlots,
    ScheduledSequence,
    SequenceOutput,
    StateRows,
)
from engine.llm.repetition import RepetitionDetector

MAX_PHASES = 64
"""The most phases in an event; further chunks of a prompt lengthen the last one."""


class Status(Enum):
    HELD_BACK = auto()
    """A further completion of a request whose prompt is not computed yet."""
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Group(ABC):
    """Sequences of a request that run as one: they start, are preempted and end together. The
    outcome of a step is handled once all of them have theirs. None of them is a completion by
    itself; the group decides which texts are.

    One sequence computes the prompt; the others have no tokens until they continue a text.
    """

    def __init__(self, sequences: "list[Sequence]", sampling: SamplingParams) -> None:
        self.sequences = sequences
        """The group's sequences, by rank. The first one reports the text, unless there are
        several."""
        self.sampling = sampling
        """The sampling parameters that the executor gets for each sequence."""
        self._outcomes: dict[Sequence, SequenceOutput] = {}
        """The outcome of each sequence whose row has been computed in this step."""

    @staticmethod  # noqa: B027 - most groups share nothing that is limited
    def check_beside(
        request: GenerateRequest, others: Iterable[GenerateRequest], max_model_len: int
    ) -> None:
        """Refuse a request for which there is no room beside the other unfinished requests.

        Raises:
            InvalidParameter, QueueFull: the error names the limit.
        """

    @property
    def keeps_outcome(self) -> bool:
        """Whether the last step's outcome survives `restart`."""
        return True

    def waits(self, sequence: "Sequence") -> bool:
        """Whether a sequence has nothing to run: it has no text yet, or an outcome that others
        still lack."""
        return not sequence.token_ids or sequence in self._outcomes

    def note(self, sequence: "Sequence", result: SequenceOutput) -> bool:
        """Take in a sequence's outcome of a step.

        Returns:
            Whether all sequences that have a text have an outcome now, so that `advance` must be
            called.
        """
        sequence.note_scores(result)
        if not result.token_ids:
            return False
        self._outcomes[sequence] = result
        return len(self._outcomes) == sum(1 for one in self.sequences if one.token_ids)

    @abstractmethod
    def advance(self) -> list[TokenEvent]:
        """Give each sequence its next token, perhaps after another sequence's text.

        Returns:
            The news for clients: that the text has begun, or the completions, which end the group.
        """

    def restart(self) -> None:
        """Forget outcomes, because what was computed is computed again."""
        self._outcomes.clear()

    def leave_out(self, index: int) -> bool:
        """Note that the client does not wait for completion `index` any more. Returns whether the
        same is true of all completions of the group."""
        return index == self.sequences[0].index

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """Return the last events, after an error."""
        return [self.sequences[0].fail(error)]


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """What the sequences of one request share."""

    request: GenerateRequest
    arrival: int
    """The position in the order of arrival."""
    arrival_time_s: float
    seed: int
    eos_token_ids: frozenset[int]
    """The end-of-sequence tokens, none under `ignore_eos`."""
    never_token_ids: frozenset[int]
    """The tokens that the model must never write."""
    chain_root: bytes
    num_slots: int
    """The number of tokens that the pool holds for each of its sequences if nothing else runs."""
    max_model_len: int
    groups: list[Group] = field(default_factory=list)
    """The request's groups. Either every sequence is in a group, or there is none and all run
    independently."""
    sequences: list["Sequence"] = field(default_factory=list)
    num_unfinished: int = 0
    was_started: bool = False
    """Whether one of its sequences has run."""
    holds_back: bool = False
    """Whether its further completions wait until the first one has computed the prompt."""
    draws_by_history: bool = False
    """Whether what it may draw depends on the tokens before, so that the host must know them
    first."""
    prepared: object = None
    """What the executor has prepared for its sequences, kept while they may be announced."""
    pins: list[Pin] = field(default_factory=list)
    """What is still to be pinned, the shortest first."""
    phases: list[Phase] = field(default_factory=list)
    """Its phases that no event has reported yet."""

    def __post_init__(self) -> None:
        self.pins = sorted(self.request.pins, key=lambda pin: pin.num_tokens)
        self.phases.extend(self.request.phases)
        self.draws_by_history = self.request.sampling.reads_text

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a sequence."""
        return self.eos_token_ids.union(self.request.sampling.stop_token_ids)

    def without(self, index: int | None) -> list["Sequence"]:
        """The sequences that end when the client does not wait for completion `index` any more;
        with None, for any completion."""
        if index is None:
            return self.sequences
        if not self.groups:
            return [s for s in self.sequences if s.index == index]
        ended = [group for group in self.groups if group.leave_out(index)]
        return [sequence for group in ended for sequence in group.sequences]

    def holds_up(self, scheduled: ScheduledSequence) -> bool:
        """Whether the next step must wait for the outcome of this share of a step."""
        if scheduled.prompt_logprobs or scheduled.num_draws > 1:
            return True
        return scheduled.num_draws > 0 and self.draws_by_history

    def note_chunk(self, scheduled: ScheduledSequence, start_s: float, duration_s: float) -> None:
        """Note a step that has computed a chunk of the prompt, or of a text that was preempted."""
        name = "recompute" if scheduled.num_output_tokens else "prefill"
        num_tokens = len(scheduled.token_ids)
        if len(self.phases) == MAX_PHASES:
            last = self.phases.pop()
            num_tokens += last.num_tokens
            start_s, duration_s = last.start_s, start_s + duration_s - last.start_s
        self.phases.append(Phase(name, start_s, duration_s, num_tokens))

    def take_phases(self) -> tuple[Phase, ...]:
        """Return the phases that no event has reported yet, once."""
        if not self.phases:
            return ()
        taken = tuple(self.phases)
        self.phases.clear()
        return taken

    def donor(self) -> "Sequence | None":
        """Find a running sequence whose table holds the whole prompt, for others to fork."""
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
    """The unique rank; the smaller goes first."""
    table: SequenceBlocks
    token_ids: list[int]
    """Prompt and accepted output, without drafts. Tokens are only appended, except in a group."""
    max_num_tokens: int
    """The length at which it ends in any case."""
    last_num_tokens: int
    """The length at which it ends or, because the pool holds no more, fails. No token beyond it
    runs."""
    states: tuple[StatePart, ...] = ()
    """The parts of its text that are states, in order."""
    status: Status = Status.HELD_BACK
    is_announced: bool = False
    """Whether the executor was told of it, by a step that did not fail."""
    is_known: bool = False
    """Whether the executor may hold state of it."""
    num_in_flight: int = 0
    """The number of tokens that launched steps compute and whose outcome is not committed."""
    num_pending: int = 0
    """The number of tokens after `token_ids` that launched steps are certain to draw."""
    group: Group | None = None
    """The sequence's group; None if it runs independently of the others."""
    forced_token_ids: list[int] = field(default_factory=list)
    """Tokens that are certain to follow `token_ids`, but are still to be drawn."""
    num_cached_tokens: int = 0
    chain: list[bytes] = field(default_factory=list)
    """The hashes of the full blocks of `token_ids`, as far as they were needed."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """The prompt's scores so far, with None for the first token; None if not asked for, or once
    sent."""
    stop_token_id: int | None = None
    detector: RepetitionDetector | None = None
    num_prompt_tokens: int = 0
    guides: int | None = None
    """If it has a negative prompt, the sequence that it guides (`NewSequence.guides`)."""
    follows: int | None = None
    """See `ScheduledSequence.follows`."""
    queue_time_s: float | None = None
    """The time in the queue, kept until it is sent with the first event."""

    @property
    def together(self) -> list["Sequence"]:
        """The sequences that run as one with it, by rank: its group, or only itself."""
        return [self] if self.group is None else self.group.sequences

    @property
    def waits_for_others(self) -> bool:
        """Whether it has nothing to run until the others of its group have caught up."""
        return self.group is not None and self.group.waits(self)

    @property
    def has_moved_on(self) -> bool:
        """Whether its last step, if that draws, has advanced it for good."""
        return self.group is None or (self.group.keeps_outcome and not self.group.waits(self))

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_known(self) -> int:
        """The number of tokens that can be run: those of its text, and those that launched steps
        draw."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_computed(self) -> int:
        """The number of tokens whose keys and values are certain, because their steps are
        committed."""
        return self.table.num_tokens - self.num_in_flight

    @property
    def num_missing(self) -> int:
        """The number of known tokens that no step computes yet: at least 1, or 0 if only an outcome
        is missing."""
        if self.num_pending and self.num_known >= self.last_num_tokens:
            return 0
        return len(self.token_ids) + self.num_pending - self.table.num_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether it misses one token, beside those that must be run again."""
        return self.num_missing == 1 + self.table.num_again

    @property
    def num_to_come(self) -> int:
        """The most tokens that can still be drawn before the last."""
        return max(0, self.last_num_tokens - self.num_known - 1)

    @property
    def num_draftable(self) -> int:
        """The most drafts that could all be drawn in a step, with one more token after the last. It
        is 0 if what may follow depends on how likely the tokens before were."""
        if self.owner.request.sampling.mirostat:
            return 0
        state = self.table.state
        room = None if state is None else state.room_after(self.num_known)
        return self.num_to_come if room is None else min(self.num_to_come, room)

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt must be run, cached or not, to be scored."""
        return self.prompt_logprobs is not None

    @property
    def may_skip(self) -> bool:
        """Whether cached tokens of its text need not be run, because only their keys and values are
        needed."""
        group = self.owner.request.sampling.group
        return not (self.scores_prompt or (group is not None and group.reads_states))

    def states_between(self, start: int, end: int) -> list[StatePart]:
        """The parts that have some of the rows `start .. end` of its text."""
        if not self.states or start >= self.states[-1].end:
            return []
        return [part for part in self.states if part.end > start and part.start < end]

    def _state_rows(self, start: int, end: int) -> list[StateRows]:
        """Those of the rows `start .. end` of its text that are states."""
        found = []
        for part in self.states_between(start, end):
            for first_row, first_state, num_rows in part.stretches(start, end):
                found.append(StateRows(part.digest, first_state, first_row - start, num_rows))
        return found

    def extend_chain(self, block_size: int) -> list[bytes]:
        """Extend the block hashes to all known tokens, and return them."""
        root = self.owner.chain_root
        return extend_chain(self.chain, root, self.token_ids, block_size, self.states)

    def restart(self) -> None:
        """Forget what was computed, but keep the text."""
        self.table.clear()
        if self.group is not None:
            self.group.restart()
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    def start_over(self, table: SequenceBlocks) -> None:
        """Forget what was computed and all launched steps, which will not land."""
        self.table = table
        self.num_in_flight = self.num_pending = 0
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        # With output, the step that announced it is over. In a group the output may be another
        # sequence's.
        self.is_announced = self.is_announced and self.num_output_tokens > 0
        if self.group is not None:
            self.group.restart()
            self.is_announced = False

    def announce(self) -> NewSequence:
        """Announce it to the executor: once, and again if the step that announced it failed."""
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
        """Replace its text and blocks by those of another sequence, whose blocks are shared.
        Everything is computed, and nothing of either is in flight."""
        self.table.clear()
        self.table = other.table.fork(other.table.num_tokens)
        self.token_ids = other.token_ids.copy()
        self.chain = other.chain.copy()

    def swap_text(self, other: "Sequence") -> None:
        """Exchange texts and blocks with another sequence. Nothing of either is in flight."""
        self.table, other.table = other.table, self.table
        self.token_ids, other.token_ids = other.token_ids, self.token_ids
        self.chain, other.chain = other.chain, self.chain

    def drop_text(self) -> None:
        """Drop the text until another sequence's is taken over."""
        self.table.clear()
        self.token_ids = []
        self.chain = []

    def launch(self, num_tokens: int, drafts: list[int]) -> ScheduledSequence:
        """Make its share of a step: the next `num_tokens` missing tokens, which count as computed
        from now on, and drafts behind the last of them, for which there is room. No step follows
        one with drafts before that is committed."""
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
            # Copied, as an abort may empty the tables meanwhile.
            blocks=[
                GroupBlocks(table.block_ids.copy(), table.num_passed) for table in self.table.tables
            ],
            num_draws=len(token_ids) - num_tokens + 1 if draws else 0,
            num_output_tokens=known - self.num_prompt_tokens,
            prompt_logprobs=self.scores_prompt and start < owner.prompt_len - 1,
            follows=self.follows,
            states=self._state_rows(start, end) if self.states else (),
            positions=axis_positions(self.states, start, start + len(token_ids)),
            recurrent=self._recurrent_slots(start, start + len(token_ids), bool(drafts)),
            is_apart=self.table.num_again > 0,
        )
        self.table.advance(start + len(token_ids))
        self.num_in_flight += len(token_ids)
        self.num_pending += draws
        return scheduled

    def _recurrent_slots(self, start: int, end: int, has_drafts: bool) -> RecurrentSlots | None:
        """Its slots in a step."""
        state = self.table.state
        return None if state is None else state.step(start, end, has_drafts=has_drafts)

    def land(self, scheduled: ScheduledSequence) -> None:
        """Note that the step of this share is over; its outcome follows with `take` or `fail`."""
        self.num_in_flight -= len(scheduled.token_ids)
        self.num_pending -= scheduled.num_draws > 0

    def take(self, scheduled: ScheduledSequence, result: SequenceOutput) -> TokenEvent | None:
        """Take in a step's outcome: scores of the prompt, drawn tokens.

        Returns:
            The news for the client, if any: tokens, or the end.
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
        """Add a step's scores of the prompt."""
        if self.prompt_logprobs is not None and result.prompt_logprobs:
            self.prompt_logprobs += result.prompt_logprobs

    def take_scores(self) -> list[TokenLogprob | None] | None:
        """Return the scores of the whole prompt once: they are sent then, and need not be computed
        again."""
        scores, self.prompt_logprobs = self.prompt_logprobs, None
        return scores

    def accept(self, token_ids: list[int]) -> tuple[int, FinishReason | None]:
        """Append tokens up to the sequence's end.

        Returns:
            The number of tokens appended, and why the sequence ends, if it does.
        """
        reason = self._end_without_token()
        for num_taken, token_id in enumerate(token_ids, 1):
            reason = self._append(token_id)
            if reason is not None:
                return num_taken, reason
        return len(token_ids), reason

    def rewind(self, num_tokens: int) -> None:
        """Take back the last computed tokens, which turned out not to belong to the text, and the
        blocks that hold nothing else. With a recurrent state, this takes back the whole step.
        Nothing of it is in flight."""
        self.table.truncate(self.table.num_tokens - num_tokens)

    def fail(self, error: EngineError) -> TokenEvent:
        """Return its last event, after an error."""
        return self.report(finish_reason=FinishReason.ERROR, failure=Failure.of(error))

    def report(self, **contents: Any) -> TokenEvent:
        """Make an event for the completion of its index."""
        queue_time_s, self.queue_time_s = self.queue_time_s, None
        return TokenEvent(
            request_id=self.owner.request.request_id,
            index=self.index,
            num_cached_tokens=self.num_cached_tokens,
            queue_time_s=queue_time_s,
            phases=self.owner.take_phases(),
            repetition=None if self.detector is None else self.detector.longest,
            **contents,
        )

    def _end_without_token(self) -> FinishReason | None:
        """Return why it ends without a token: a request that only scores its prompt ends once that
        is computed."""
        is_computed = self.num_computed == len(self.token_ids)
        is_over = is_computed and self.owner.request.sampling.max_tokens == 0
        return FinishReason.LENGTH if is_over else None

    def _append(self, token_id: int) -> FinishReason | None:
        self.token_ids.append(token_id)
        is_repeating = self.detector is not None and self.detector.append(token_id)
        sampling = self.owner.request.sampling
        may_end = self.num_output_tokens > sampling.min_tokens
        # A complete structure allows only the end, even before `min_tokens`.
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


def check_length(request: GenerateRequest, max_model_len: int, capacity: int) -> None:
    """Refuse a prompt that is too long. One that leaves room for one token is taken, even if
    `max_tokens` exceeds the context. Such a request ends with `length` there.

    Args:
        capacity: the most tokens of one sequence that the KV pool holds.

    Raises:
        ContextLengthExceeded, OutOfBlocks
    """
    num_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    if num_tokens + min(max_tokens, 1) > max_model_len:
        raise ContextLengthExceeded.beyond(
            max_model_len,
            f"the prompt has {num_tokens} tokens and max_tokens is {max_tokens}. "
            "Please shorten the prompt, or raise max_model_len.",
            param="prompt",
        )
    if num_tokens > capacity:
        raise OutOfBlocks(
            f"the prompt has {num_tokens} tokens; the KV cache holds {capacity}: "
            f"shorten the prompt, or raise kv_cache_memory_gib",
            param="prompt",
        )
