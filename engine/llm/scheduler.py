"""Decides who runs next: turns waiting and running sequences into one step's decision, and its
outcome into events. Knows no tensors; only `LLMEngine` calls it, from one thread.

There is one rule instead of phases: each step moves `computed` towards `known` tokens, within a
token budget (`max_num_batched_tokens`) and a number of places (`max_num_seqs`). The budget goes

1. to running sequences that miss one token (and those before it that a recurrent state must read
   again), so that no prompt ever delays a decode; beside them prompts get what `StepBudget` allows,
   so that none makes a step much longer either; 2. to running sequences that miss more, then to
   waiting ones, by rank. One that cannot finish its prompt in this step leaves a quarter of what is
   left to those behind it, so that a long prompt slows short ones down but does not block them; 3.
   what then remains goes back to the unfinished prompts, by rank.

In a step of decodes alone, spare rows may go to drafts: tokens that a `Drafter` expects to follow.
They take no blocks from other sequences, since the commit gives back what they need.

When blocks run out, the running sequence of the largest rank is preempted: its blocks are freed and
it is computed again later, output included. The smallest rank is never preempted, so it advances in
every step, and by induction everything finishes. A waiting sequence is admitted only if its whole
text fits beside what the running ones still miss, with a block to grow for each of them. All
sequences of a group (`engine.llm.request.Group`) are admitted and preempted at once, so that none
holds blocks while it waits for one that finds no free blocks.

A prompt with pictures stops before one whose states must not be made in this step
(`engine.llm.kept_states`). While others stream it may get nothing for some steps, whatever its
rank.

A decision may be made while the previous one is still executed, on the assumption that it goes
well: what it draws counts as a token, whose id the executor fills in. Rows of a sequence that turns
out to have ended are wasted, and `commit` drops them. No sequence is preempted meanwhile, and a
decision says when the next one must wait for its outcome (`blocks_next`).
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from engine.contract.generate import DrafterName, EngineStats, GenerateRequest, TokenEvent
from engine.contract.generate_rules import check_generate
from engine.contract.groups import TextLimits
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.sampling_params import SamplingParams
from engine.errors import (
    EngineError,
    InvalidParameter,
    InvariantViolation,
    ModelLoadError,
    OutOfBlocks,
    QueueFull,
)
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.cache.kv_cache import BlockPool, check
from engine.llm.cache.prefix_cache import PrefixCache, chain_root
from engine.llm.cache.recurrent_slots import RecurrentPool
from engine.llm.cache.sequence_blocks import SequenceBlocks
from engine.llm.computed_prefixes import ComputedPrefixes
from engine.llm.cost.step_budget import StepBudget
from engine.llm.cost.step_cost import StepWork
from engine.llm.decision import ScheduleDecision, ScheduledSequence, SequenceOutput, StepOutput
from engine.llm.drafts.drafter import Drafter
from engine.llm.drafts.drafting import Drafting
from engine.llm.fault_isolation import FaultIsolation
from engine.llm.free_blocks import FreeBlocks
from engine.llm.groups.group_classes import check_beside
from engine.llm.kept_states import KeptStates, PartsOfStep
from engine.llm.kv_store.kv_store import KvStore
from engine.llm.kv_transfer.loans import Loans
from engine.llm.request import ActiveRequest, Group, Sequence, Status, check_length
from engine.llm.sequences import Sequences
from engine.runtime.fault import answer_for, failed_row, raise_if_poisoned
from engine.turns.policy import create_policy

_PARTS_OF_BUDGET = 4
"""A long prompt leaves one of this many parts of the budget to those behind it."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Step:
    """A decision in the making."""

    budget: int
    spare: int = 0
    """The tokens withheld so that decodes are not delayed; only chunks that cannot be cut get
    them."""
    chunks: dict[Sequence, int] = field(default_factory=dict)
    """The number of tokens given to each sequence, in the order in which they will run."""
    is_short: bool = False
    """Whether a sequence lacks blocks and could preempt others, but steps are in flight."""
    is_alone: bool = False
    """Whether one sequence runs alone, after a step that failed."""
    drafts: dict[Sequence, list[int]] = field(default_factory=dict)
    """What may follow the last known token of some sequences that reach it."""
    parts: PartsOfStep = field(default_factory=PartsOfStep)
    """The parts of prompts that are states and have rows in the step."""

    def give(self, sequence: Sequence, num_tokens: int) -> None:
        if sequence.states:
            start = self.start_of(sequence)
            self.parts.add(sequence.states_between(start, start + num_tokens))
        self.chunks[sequence] = self.chunks.get(sequence, 0) + num_tokens
        self.spare -= max(0, num_tokens - self.budget)
        self.budget = max(0, self.budget - num_tokens)

    def start_of(self, sequence: Sequence) -> int:
        """The number of tokens of a sequence that are computed before what it may get next."""
        return sequence.table.num_tokens + self.chunks.get(sequence, 0)

    def drop(self, sequence: Sequence) -> None:
        self.budget += self.chunks.pop(sequence, 0)
        if not self.chunks:  # no text streams, so that nothing delays a picture of the next one
            self.parts = PartsOfStep()


class Scheduler:
    """The queues, budget and cache of one model. Decisions are committed in the order they were
    made; one may be made ahead, unless the last one sets `blocks_next`.

    Args:
        eos_token_ids: tokens that end a sequence unless its request ignores them.
        vocab_size: token ids at or above it are refused.
        never_token_ids: tokens that the model must never write.
        windows: how far each group of the model's layers looks back (`engine.contract.kv_layout`).
        drafters: those that guess tokens, in this order; without any, every step brings a text one
            token.
        states: keeps the states of prompts' parts; by default the model takes no pictures.
        store: gets a copy of each block that other texts can use.
        loans: keeps the blocks of prompts for other workers.
        journal: records what the prefix cache adds and drops.
        clock: `time.time`, or a test's own; only queue times depend on it.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        *,
        eos_token_ids: tuple[int, ...],
        vocab_size: int,
        never_token_ids: tuple[int, ...] = (),
        windows: tuple[int | None, ...] = (None,),
        drafters: Mapping[DrafterName, Drafter] | None = None,
        states: KeptStates | None = None,
        store: KvStore | None = None,
        loans: Loans | None = None,
        journal: CacheJournal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = vocab_size
        self._never_token_ids = frozenset(never_token_ids)
        self._states = states or KeptStates()
        pictures = self._states.pictures
        self._drafting = Drafting(
            config, drafters or {}, None if pictures is None else pictures.placeholder_id
        )
        self._clock = clock
        self._policy = create_policy(config.scheduling_policy)
        self._layout = config.kv_layout(windows)
        self._journal = journal
        self._pool = self._empty_pool()
        self._sequences = Sequences(self._policy, self._pool)
        self._prefixes = ComputedPrefixes(config, self._pool, store)
        self._loans = loans
        self._free_blocks = FreeBlocks(self._pool, self._sequences, self._policy)
        self._isolation = FaultIsolation(self._sequences)
        self._budget = StepBudget(config, drafts=bool(drafters))
        self._events: list[TokenEvent] = []
        """The events of a commit that was not completed."""
        self.is_doubtful = False
        """Whether an exception may have left the state inconsistent, so that `start_over` is
        needed."""
        # Every running sequence must get a token per step, so no more can run than the budget has
        # beside the rows of a picture that must be computed in one step.
        most = config.max_num_batched_tokens - self._states.num_uncut_rows + 1
        self._max_num_running = min(config.max_num_seqs, most)
        if most < 1:
            raise ModelLoadError(
                f"a picture takes {self._states.num_uncut_rows} rows of one step, and "
                f"max_num_batched_tokens is {config.max_num_batched_tokens}; raise it",
                param="max_num_batched_tokens",
            )
        self._seeds = random.Random(config.seed)
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._num_steps = 0
        self._num_in_flight = 0
        self._num_step_tokens = 0
        self._step_s = 0.0
        """How long the newest step took."""

    def check(self, request: GenerateRequest) -> None:
        """Refuse a request that can never run.

        Raises:
            InvalidParameter, ContextLengthExceeded, OutOfBlocks
        """
        capacity, most = self._num_slots(request.sampling), self._config.max_model_len
        limits = TextLimits(
            vocab_size=self._vocab_size,
            max_num_tokens=min(capacity, most),
            eos_token_ids=self._eos_token_ids,
            max_num_seqs=self._max_num_running,
            pictures=self._states.pictures,
        )
        check_generate(request, limits)
        check_length(request, most, capacity)
        check_beside(request, self._sequences.requests(), most)
        if request.request_id in self._sequences:
            raise InvalidParameter(
                "a request with this request_id is running already", param="request_id"
            )

    def add(self, request: GenerateRequest, prepared: object = None) -> None:
        """Put a request in the queue.

        Args:
            prepared: what the executor has prepared, kept until the request has ended.

        Raises:
            InvalidParameter, ContextLengthExceeded: it can never run.
            OutOfBlocks: its prompt is larger than the pool.
            QueueFull: `max_num_queued` requests wait already, not counting those that find a place.
        """
        self.check(request)
        num_places = self._max_num_running - len(self._sequences.running)
        if self._sequences.num_new_requests - num_places >= self._config.max_num_queued:
            raise QueueFull(
                f"the queue is full: {self._config.max_num_queued} requests are already waiting; "
                "retry later, or raise max_num_queued"
            )
        sampling = request.sampling
        owner = ActiveRequest(
            request=request,
            arrival=self._num_arrivals,
            arrival_time_s=request.arrival_time_s or self._clock(),
            seed=self._seeds.getrandbits(63) if sampling.seed is None else sampling.seed,
            eos_token_ids=frozenset() if sampling.ignore_eos else self._eos_token_ids,
            never_token_ids=self._never_token_ids,
            chain_root=chain_root(request.cache_salt, request.adapter),
            num_slots=self._num_slots(sampling),
            max_model_len=self._config.max_model_len,
            prepared=prepared,
        )
        self._num_arrivals += 1
        self._sequences.add(owner)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or only its completion `index`, at once, whatever it is doing. No event
        follows, and unknown ids are ignored.

        This works between `schedule` and `commit`, too: its outcomes are then dropped.
        """
        owner = self._sequences.find_request(request_id)
        if owner is None:
            return
        for sequence in owner.without(index):
            self._end(sequence)
        self._sequences.release_siblings(owner)

    def requests(self) -> list[GenerateRequest]:
        """The unfinished requests."""
        return self._sequences.requests()

    def has_work(self) -> bool:
        return bool(self._sequences.running or self._sequences.waiting)

    @property
    def pool(self) -> BlockPool:
        """The pool of blocks; another one after `start_over`."""
        return self._pool

    def schedule(self) -> ScheduleDecision:
        """Decide the next step. It has work whenever there is any, unless all of it waits for the
        outcome of a step in flight."""
        step = _Step(self._config.max_num_batched_tokens)
        suspect = self._isolation.next_suspect()
        if suspect is not None:
            self._run_alone(suspect, step)
        else:
            self._continue_running(step)
            self._admit_waiting(step)
            self._hand_out_rest(step)
            self._add_drafts(step)
        return self._decide(step)

    def _continue_running(self, step: _Step) -> None:
        missing = [(s, s.num_missing, s.is_decoding) for s in self._sequences.running]
        for sequence, num_tokens, is_decoding in missing:
            if is_decoding:
                self._continue(sequence, num_tokens, step)
        self._bound_prompts(step)
        for sequence, num_tokens, is_decoding in missing:
            if num_tokens > 0 and not is_decoding:  # 0: only an outcome is missing
                self._continue(sequence, num_tokens, step)

    def _bound_prompts(self, step: _Step) -> None:
        """Limit the prompt tokens so that they do not delay the decodes."""
        running = self._sequences.running
        num_soon = min(self._max_num_running, len(running) + len(self._sequences.waiting))
        first = next((s for s in running if s.num_missing and not s.is_decoding), None)
        decodes = [
            s.table.num_tokens for s, num_rows in step.chunks.items() for _ in range(num_rows)
        ]
        num_tokens = self._budget.beside(
            StepWork.of_decodes(decodes),
            StepWork(num_decodes=num_soon, decode_context=sum(s.num_known for s in running)),
            start=first.table.num_tokens if first else 0,
        )
        step.spare = max(0, step.budget - num_tokens)
        step.budget -= step.spare
        if step.chunks:
            step.parts.most_slices = self._states.most_beside_streams()

    def note_time(self, decision: ScheduleDecision, seconds: float) -> None:
        """Note how long a decided step took, from its launch or the end of the previous one."""
        has_rows = bool(decision.scheduled)
        self._step_s = seconds
        self._states.note_time(decision.num_slices, seconds, has_rows=has_rows)
        if has_rows and not decision.num_slices:
            self._budget.observe(StepWork.of(decision), seconds)

    def commit(self, decision: ScheduleDecision, output: StepOutput) -> list[TokenEvent]:
        """Take in the outcome of `decision`. A sequence for which that fails ends with an error,
        and `is_doubtful` is set.

        Raises:
            InvariantViolation: the output does not match the decision.
        """
        if [o.seq_id for o in output.outputs] != [s.seq_id for s in decision.scheduled]:
            raise InvariantViolation("the executor's output does not match the decision")
        if decision.has_work:
            self._num_steps += 1
            self._num_in_flight -= 1
        self._num_step_tokens = decision.num_tokens
        waiting: list[Sequence] = []
        for scheduled, result in zip(decision.scheduled, output.outputs, strict=True):
            sequence = self._sequences.find(scheduled.seq_id)
            if sequence is None:
                continue
            if result.is_waiting:
                waiting.append(sequence)
            try:
                self._commit_sequence(sequence, scheduled, result, self._events)
                moved_on = scheduled.num_draws and sequence.has_moved_on
                if moved_on or sequence.status is Status.FINISHED:
                    self._isolation.clear(sequence)
            except Exception as error:
                self.is_doubtful = True
                self._fail(sequence, self._blame(sequence, error), self._events)
        for sequence in waiting:
            # Only now that all have landed, because the sequences of its group start again, too.
            if sequence.status is Status.RUNNING:
                self._sequences.preempt(sequence)
        events, self._events = self._events, []
        return events

    def recover(self, error: Exception, decision: ScheduleDecision | None) -> list[TokenEvent]:
        """Recover from a step that failed while it was decided (None), launched, collected or
        committed. That step and all later ones in flight are void, and everything that runs is
        computed again. The culprit ends with an error; if it is not known, all sequences are run
        alone.

        Returns:
            The events for clients.

        Raises:
            Exception: the error itself, if the device is poisoned.
        """
        raise_if_poisoned(error)
        culprit = self._isolation.find_culprit(error, decision)
        if culprit is not None:
            self._fail(culprit, self._blame(culprit, error), self._events)
        self.start_over(keeps_blocks=decision is not None and not self.is_doubtful)
        events, self._events = self._events, []
        return events

    def start_over(self, *, keeps_blocks: bool = False) -> None:
        """Have everything that runs computed again. No step may be in flight any more.

        Args:
            keeps_blocks: whether the pool is known to be consistent; if not, an empty one replaces
                it, and cached blocks are lost.
        """
        if not keeps_blocks:
            if self._loans is not None:
                self._loans.forget_all()
            self._pool = self._prefixes.pool = self._free_blocks.pool = self._empty_pool()
        self._sequences.start_over(self._pool)
        self._states.start_over()
        self._num_in_flight = 0
        self.is_doubtful = False

    def _blame(self, sequence: Sequence, error: Exception) -> EngineError:
        return answer_for(error, sequence.owner.request.request_id)

    def _run_alone(self, suspect: Sequence, step: _Step) -> None:
        step.is_alone = True
        if suspect.status is Status.WAITING:
            tables = [self._prefixes.find(sequence) for sequence in suspect.together]
            self._start(suspect.together, tables)
        for sequence in suspect.together:
            num_tokens = self._reach(sequence, min(sequence.num_missing, step.budget), step)
            if num_tokens:
                reached = sequence.table.num_tokens + num_tokens
                check(self._reserve(sequence, reached), "a sequence does not fit even alone")
                step.give(sequence, num_tokens)

    def _start(self, sequences: list[Sequence], tables: list[SequenceBlocks]) -> None:
        first = sequences[0]
        if not first.owner.was_started:
            first.queue_time_s = max(0.0, self._clock() - first.owner.arrival_time_s)
            self._prefixes.note_first_start(first, tables[0])
        for sequence, table in zip(sequences, tables, strict=True):
            self._sequences.start(sequence, table)

    def stats(self) -> EngineStats:
        """The statistics of scheduler and cache, in constant time."""
        return EngineStats(
            num_running=len(self._sequences.running),
            num_waiting=len(self._sequences.waiting) + self._sequences.num_held_back,
            kv_blocks_total=self._pool.num_blocks,
            kv_blocks_used=self._pool.num_held,
            kv_slots_unused=self._pool.num_slots_unused,
            kv_block_size=self._pool.block_size,
            prefix_cache_queries=self._prefixes.num_queries,
            prefix_cache_hits=self._prefixes.num_hits,
            kv_event_batches_dropped=0 if self._journal is None else self._journal.num_dropped,
            num_preemptions=self._num_preemptions,
            drafts=self._drafting.counts,
            num_steps=self._num_steps,
            step_tokens=self._num_step_tokens,
            step_token_budget=self._budget.num_tokens,
            step_predicted_s=self._budget.predicted_s,
            step_measured_s=self._budget.measured_s,
        )

    def check_invariants(self) -> None:
        """Recount slowly everything that is kept up to date by increments, between two steps.

        Raises:
            InvariantViolation: a block leaked or has a wrong owner, a sequence is in two places, a
                limit was passed, or a counter is wrong.
        """
        self._sequences.check_invariants()
        tables = [table for s in self._sequences.running for table in s.table.tables]
        tables += [] if self._loans is None else self._loans.tables()
        self._pool.check_invariants(tables)
        if self._pool.recurrent is not None:
            states = (s.table.state for s in self._sequences.running)
            self._pool.recurrent.check_invariants(state for state in states if state is not None)
        num_running, budget = len(self._sequences.running), self._config.max_num_batched_tokens
        check(num_running <= self._max_num_running, f"{num_running} sequences run")
        check(self._num_step_tokens <= budget, f"a step had {self._num_step_tokens} tokens")

    def _continue(self, sequence: Sequence, num_missing: int, step: _Step) -> None:
        """Give a running sequence its tokens, preempting larger ranks if it needs their blocks."""
        if step.budget == 0 or sequence.status is not Status.RUNNING:
            return
        num_tokens = self._share(sequence, num_missing, step)
        if not num_tokens:
            return
        while not self._reserve(sequence, sequence.table.num_tokens + num_tokens):
            victim = self._sequences.running[-1]
            if victim in sequence.together:
                return  # keeps what it has and waits for smaller ranks to finish
            if self._num_in_flight:
                step.is_short = True
                return
            self._preempt(victim, step)
        step.give(sequence, num_tokens)

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the slots of a running sequence writable, if necessary with blocks that are kept for
        other workers."""
        while not sequence.table.reserve(num_tokens):
            if not self._withdraw_loan():
                return False
        return True

    def _withdraw_loan(self) -> bool:
        return self._loans is not None and self._loans.withdraw()

    def _share(self, sequence: Sequence, num_missing: int, step: _Step) -> int:
        """How much of the budget a sequence takes at first."""
        num_tokens = min(num_missing, step.budget)
        left_to_others = step.budget // _PARTS_OF_BUDGET
        # Less than a block is not worth a place in the batch.
        if num_tokens < num_missing and left_to_others >= self._pool.block_size:
            num_tokens -= left_to_others
        return self._reach(sequence, num_tokens, step)

    def _reach(self, sequence: Sequence, num_tokens: int, step: _Step) -> int:
        """How many of these tokens a sequence takes, because of its parts that are states."""
        if self._pool.recurrent is not None and self._pool.recurrent.is_cached:
            num_tokens = self._to_block_end(sequence, num_tokens, step)
        if not sequence.states:
            return num_tokens
        most = step.budget + step.spare
        return self._states.reach(sequence, step.start_of(sequence), num_tokens, most, step.parts)

    def _to_block_end(self, sequence: Sequence, num_tokens: int, step: _Step) -> int:
        """How many of these tokens a sequence takes so that its recurrent state can be kept: up to
        the end of a block, if there is one, and in one step not beyond where other texts begin to
        differ, nor beyond the last whole block."""
        size, start = self._pool.block_size, sequence.table.num_tokens
        branch = sequence.table.num_shared
        last = branch if start < branch else (sequence.num_known - 1) // size * size
        given = step.start_of(sequence)
        end = given + num_tokens
        if start < last:
            end = min(end, last)
            if end // size > start // size:  # else the step reaches no block's end
                end = max(end - end % size, given)
        return end - given

    def _preempt(self, victim: Sequence, step: _Step) -> None:
        self._sequences.preempt(victim)
        for sequence in victim.together:
            step.drop(sequence)
        self._num_preemptions += 1

    def _admit_waiting(self, step: _Step) -> None:
        waiting, running = self._sequences.waiting, self._sequences.running
        while step.budget and waiting and len(running) < self._max_num_running:
            sequences = waiting.peek().together
            if len(running) + len(sequences) > self._max_num_running:
                return
            tables = [self._prefixes.find(sequence) for sequence in sequences]
            if not self._make_room(sequences, tables, step):
                for table in tables:
                    table.clear()
                return
            self._start(sequences, tables)
            for sequence, table in zip(sequences, tables, strict=True):
                num_tokens = self._share(sequence, sequence.num_missing, step)
                if num_tokens:
                    reached = table.num_tokens + num_tokens
                    check(table.reserve(reached), "an admitted sequence does not fit")
                    step.give(sequence, num_tokens)

    def _make_room(
        self, sequences: list[Sequence], tables: list[SequenceBlocks], step: _Step
    ) -> bool:
        """Whether waiting sequences that start together fit, if necessary after preempting
        others."""
        victims = self._free_blocks.victims(sequences, tables)
        while victims is None and not self._sequences.running and self._withdraw_loan():
            victims = self._free_blocks.victims(sequences, tables)
        if victims is None:
            return False
        if victims and self._num_in_flight:
            step.is_short = True
            return False
        for victim in victims:
            if victim.status is Status.RUNNING:  # else it went with its group
                self._preempt(victim, step)
        # Victims that share blocks free fewer than they hold.
        return self._free_blocks.fits(sequences, tables)

    def _hand_out_rest(self, step: _Step) -> None:
        for sequence, num_tokens in list(step.chunks.items()):
            more = min(step.budget, sequence.num_missing - num_tokens)
            more = self._reach(sequence, more, step)
            if more and sequence.table.reserve(sequence.table.num_tokens + num_tokens + more):
                step.give(sequence, more)

    def _add_drafts(self, step: _Step) -> None:
        """Add drafts to decodes if the step has nothing else to do."""
        for sequence, drafts in self._drafting.of(step.chunks, step.budget, self._budget):
            if sequence.table.reserve(step.start_of(sequence) + len(drafts)):
                step.drafts[sequence] = drafts

    def _decide(self, step: _Step) -> ScheduleDecision:
        decision = ScheduleDecision(copies=self._pool.take_copies())
        for sequence, num_tokens in step.chunks.items():
            if not sequence.is_announced:
                decision.new.append(sequence.announce())
            scheduled = sequence.launch(num_tokens, step.drafts.get(sequence, []))
            decision.scheduled.append(scheduled)
            decision.blocks_next |= sequence.owner.holds_up(scheduled)
        used = step.parts.of(decision.scheduled)
        decision.num_slices = self._states.num_slices(used)
        decision.advanced = self._states.advance(step.parts, used)
        if decision.advanced is not None:
            decision.num_slices += decision.advanced.num_slices
        if decision.has_work:
            decision.finished = self._sequences.take_finished()
            decision.dropped, decision.encoded = self._states.settle(used)
            decision.blocks_next |= step.is_short or step.is_alone
            self._num_in_flight += 1
        if self._pool.recurrent is not None:
            self._pool.recurrent.end_decision()
        return decision

    def _commit_sequence(
        self,
        sequence: Sequence,
        scheduled: ScheduledSequence,
        result: SequenceOutput,
        events: list[TokenEvent],
    ) -> None:
        sequence.land(scheduled)
        if scheduled.num_output_tokens == 0 or not scheduled.is_decode:
            start_s = self._clock() - self._step_s
            sequence.owner.note_chunk(scheduled, start_s, self._step_s)
        failure: EngineError | None = None
        if result.error is not None:
            failure = (
                result.error
                if isinstance(result.error, EngineError)
                else failed_row(result.error, sequence.owner.request.request_id)
            )
            if not result.token_ids:
                self._fail(sequence, failure, events)
                return
        if result.is_waiting:
            sequence.rewind(scheduled.num_draws - 1)
            self._prefixes.note_computed(sequence, scheduled.start)
            return
        num_drawn, num_draws = len(result.token_ids), scheduled.num_draws
        fits = min(num_draws, 1) <= num_drawn <= num_draws
        check(fits, f"{num_draws} draws brought {num_drawn} tokens")
        if num_draws > 1:
            self._drafting.learn(sequence, num_draws - 1, num_drawn - 1)
        if sequence.group is not None:
            self._commit_in_group(sequence.group, sequence, scheduled, result, events)
            return
        event = sequence.take(scheduled, result)
        self._prefixes.note_computed(sequence, scheduled.start)
        self._sequences.release_siblings(sequence.owner)
        if event is None:
            return
        if event.finish_reason is not None:
            if self._loans is not None and sequence.owner.request.lends_kv:
                event = replace(event, kv_loan=self._loans.lend(self._pool, sequence))
            self._end(sequence)
        # Its last event is sent only once, whatever goes wrong above.
        events.append(event)
        if event.finish_reason is None:
            failure = _outgrows(sequence) or failure
            if failure is not None:
                self._fail(sequence, failure, events)

    def _commit_in_group(
        self,
        group: Group,
        sequence: Sequence,
        scheduled: ScheduledSequence,
        result: SequenceOutput,
        events: list[TokenEvent],
    ) -> None:
        self._prefixes.note_computed(sequence, scheduled.start)
        self._sequences.release_siblings(sequence.owner)
        if not group.note(sequence, result):
            return
        news = group.advance()
        is_over = any(event.finish_reason is not None for event in news)
        if is_over:
            for each in sequence.together:
                self._end(each)
        events += news
        failures = [] if is_over else [_outgrows(each) for each in sequence.together]
        failure = next((one for one in failures if one is not None), None)
        if failure is not None:
            self._fail(sequence, failure, events)

    def _end(self, sequence: Sequence) -> None:
        try:
            self._drafting.forget(sequence)
            self._sequences.finish(sequence)
        except Exception:
            # Its end is reported anyway; starting over recovers what it held.
            log.exception(
                "a request could not be ended cleanly", request_id=sequence.owner.request.request_id
            )
            self._sequences.forget(sequence)
            self.is_doubtful = True

    def _fail(self, sequence: Sequence, error: EngineError, events: list[TokenEvent]) -> None:
        group = sequence.group
        events += [sequence.fail(error)] if group is None else group.fail(error)
        for each in sequence.together:
            self._end(each)
        self._sequences.release_siblings(sequence.owner)

    def _num_slots(self, sampling: SamplingParams) -> int:
        """The number of tokens that the pool holds for each of the sequences that run together."""
        if sampling.num_together == 1:
            return self._pool.num_slots
        return self._layout.most_tokens(self._pool.num_blocks // max(1, sampling.num_together))

    def _empty_pool(self) -> BlockPool:
        config = self._config
        cache = PrefixCache(config.max_idle_cached_blocks, journal=self._journal)
        if self._journal is not None:
            self._journal.clear()
        recurrent = None
        if config.num_recurrent_slots:
            recurrent = RecurrentPool(
                config.num_recurrent_slots,
                config.block_size,
                is_cached=config.enable_prefix_caching,
            )
        return BlockPool(config.num_kv_blocks, config.block_size, cache, self._layout, recurrent)


def _outgrows(sequence: Sequence) -> OutOfBlocks | None:
    """The error that ends a sequence which does not fit even into an empty pool."""
    num_tokens, num_slots = len(sequence.token_ids), sequence.owner.num_slots
    if num_tokens <= num_slots:
        return None
    return OutOfBlocks(
        f"prompt and output have {num_tokens} tokens; the KV cache holds {num_slots}: lower "
        "max_tokens, or raise kv_cache_memory_gib"
    )
