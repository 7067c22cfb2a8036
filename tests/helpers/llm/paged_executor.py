"""An executor without a model that remembers what every KV slot holds.

Each slot stores a digest of the whole text up to its token, made from the digest that the block
table shows one position earlier, as attention would. Before a token is drawn, all slots that the
step's rows look at are read back and compared with the sequence's text, in every layer group, so a
block that is shared wrongly, written by two, copied too late, served stale from the cache or given
back too early is caught where it happens. The drawn token is a pure function of seed, index and
what was read.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from engine.contract.generate import DrafterName, GenerateRequest, TokenEvent, TokenLogprob
from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.contract.request import FinishReason
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.sampling_params import SamplingParams
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.cost.step_budget import Price
from engine.llm.decision import (
    PENDING_TOKEN_ID,
    NewSequence,
    ScheduleDecision,
    ScheduledSequence,
    SequenceOutput,
    StepOutput,
)
from engine.llm.drafts.drafter import Drafter
from engine.llm.kept_states import KeptStates
from engine.llm.request import Sequence as RunningSequence
from engine.llm.scheduler import Scheduler

VOCAB_SIZE = 50
EOS = 0
PLACEHOLDER = VOCAB_SIZE - 1
"""The token of rows that are states, in tests with pictures."""
Windows = tuple[int | None, ...]
"""How far each layer group looks back: at least to the token before."""


def make_config(**changes: Any) -> ResolvedConfig:
    defaults = ResolvedConfig(
        device="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_step_ms=0.0,
        max_step_ratio=0.0,
        block_size=4,
        num_kv_blocks=64,
        kv_cache_dtype="float32",
        enable_prefix_caching=True,
        max_idle_cached_blocks=64,
        scheduling_policy="fcfs",
        max_num_queued=1000,
        num_threads=1,
        seed=0,
        async_scheduling=False,
        record_steps=False,
        num_speculative_tokens=0,
        prompt_lookup_min=3,
        prompt_lookup_max=8,
        shared_lookup_tokens=0,
        quantization="none",
        deterministic=False,
        debug_invariants=True,
    )
    return replace(defaults, **changes)


def make_scheduler(
    config: ResolvedConfig | None = None,
    windows: Windows = (None,),
    drafter: Drafter | None = None,
    states: KeptStates | None = None,
    journal: CacheJournal | None = None,
    **changes: Any,
) -> Scheduler:
    return Scheduler(
        config or make_config(**changes),
        eos_token_ids=(EOS,),
        vocab_size=VOCAB_SIZE,
        windows=windows,
        drafters={} if drafter is None else {DrafterName.LOOKUP: drafter},
        states=states,
        journal=journal,
        clock=lambda: 100.0,
    )


def make_request(
    request_id: str,
    prompt: int | Iterable[int],
    max_tokens: int = 4,
    *,
    priority: int = 0,
    cache_salt: str | None = None,
    adapter: str | None = None,
    states: Sequence[StatePart] = (),
    **sampling: Any,
) -> GenerateRequest:
    """Make a request. A prompt given by its length holds tokens that depend on the request's id."""
    if isinstance(prompt, int):
        prompt = [(crc32(request_id.encode()) + 7 * i + i * i) % VOCAB_SIZE for i in range(prompt)]
    return GenerateRequest(
        request_id=request_id,
        model="m",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**{"ignore_eos": True, "max_tokens": max_tokens, **sampling}),
        priority=priority,
        arrival_time_s=99.0,
        cache_salt=cache_salt,
        adapter=adapter,
        states=tuple(states),
    )


def picture_facts(rows: int, *, looks_both_ways: bool, **changes: Any) -> PictureFacts:
    """Facts of a model whose pictures are one pixel, unless others are given."""
    facts: dict[str, Any] = {
        "side": 1,
        "marker": "<image>",
        "placeholder": "<row>",
        "placeholder_id": PLACEHOLDER,
        "resampling": "bilinear",
        "before": "",
        "after": "",
    }
    return PictureFacts(rows_per_crop=rows, looks_both_ways=looks_both_ways, **(facts | changes))


def shown(request: GenerateRequest) -> list[int]:
    """The prompt with a number for each state, by its content and place, instead of
    placeholders."""
    return _shown(request.prompt_token_ids, request.states)


def _shown(prompt: list[int], states: Iterable[StatePart]) -> list[int]:
    text = list(prompt)
    for part in states:
        text[part.start : part.end] = [state_number(part.digest, i) for i in range(part.length)]
    return text


def state_number(digest: bytes, place: int) -> int:
    """The state of a row of a part; no token has that number."""
    return VOCAB_SIZE + crc32(digest + bytes([place]))


def digests(token_ids: list[int], adapter: str | None) -> list[int]:
    """Compute what the slots of this text must hold."""
    values, value = [], _root(adapter)
    for token_id in token_ids:
        value = hash((value, token_id))
        values.append(value)
    return values


def draw(new: NewSequence, digest: int, num_output_tokens: int) -> int:
    """Act as the model: return the next token after the text with this digest."""
    token_id = hash((new.seed, new.index, digest)) % VOCAB_SIZE
    if num_output_tokens < new.sampling.min_tokens:
        while token_id in new.suppressed_token_ids:
            token_id = (token_id + 1) % VOCAB_SIZE
    return token_id


@dataclass
class Guesser:
    """A drafter that is right about a given share of its tokens, because it knows the model."""

    rng: random.Random
    is_right: float
    num_drafts: int = 0
    num_accepted: int = 0

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        return True

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        assert num_rows > 0 and price.row >= 0.0 and price.step_s > 0.0
        for sequence in decodes:
            num_drafts = min(self.rng.randint(0, 6), num_rows, sequence.num_draftable)
            if num_drafts > 0:
                num_rows -= num_drafts
                yield sequence, self.guess(sequence, num_drafts)

    def guess(self, sequence: RunningSequence, num_drafts: int) -> list[int]:
        owner = sequence.owner
        request, sampling = owner.request, owner.request.sampling
        suppressed = (*owner.eos_token_ids, *sampling.stop_token_ids)
        new = NewSequence(0, [], sampling, owner.seed, sequence.index, suppressed)
        text = _shown(sequence.token_ids, sequence.states)
        for _ in range(sequence.num_pending + num_drafts):
            is_wrong = self.rng.random() > self.is_right
            digest = digests(text, request.adapter)[-1]
            token_id = draw(new, digest, len(text) - owner.prompt_len)
            text.append((token_id + is_wrong) % VOCAB_SIZE)
        return text[len(text) - num_drafts :]

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafts > 0
        self.num_drafts += num_drafts
        self.num_accepted += num_accepted

    def forget(self, sequence: RunningSequence) -> None:
        """Do nothing: it keeps no state."""


def score(digest: int, target: int) -> TokenLogprob:
    return TokenLogprob(target, -float(hash((digest, target)) % 1000), 1, [target], [0.0])


def likeliest(digest: int, num_top: int) -> TokenLogprob:
    """Return the tokens that may follow the text with this digest, as a beam's row has them. There
    are few different numbers, so that there are ties and exact sums."""
    logprobs = [-float(hash((digest, token_id)) % 512) / 64 for token_id in range(VOCAB_SIZE)]
    ids = sorted(range(VOCAB_SIZE), key=lambda token_id: -logprobs[token_id])[:num_top]
    tops = [logprobs[token_id] for token_id in ids]
    return TokenLogprob(ids[0], tops[0], 1, ids, tops)


def similarity(digest: int) -> float:
    """Return the similarity of the last token's state to those before it, one of few different
    numbers."""
    return (hash((digest, 2)) % 32) / 32


def breaks(digest: int, error_rate: int) -> bool:
    """Whether the row after this text fails: about one in `error_rate`, none for 0."""
    return error_rate > 0 and hash((digest, 1)) % error_rate == 0


@dataclass
class _State:
    new: NewSequence
    history: list[int]
    is_gone: bool = False
    """Whether it is a beam that was aborted since it was scheduled, so that its outcome does not
    count."""


@dataclass
class PagedStep:
    """A step whose outcome is computed at launch and seen when it is collected."""

    output: StepOutput
    is_collected: bool = False

    def collect(self) -> StepOutput:
        assert not self.is_collected, "collected twice"
        self.is_collected = True
        return self.output


@dataclass
class PagedExecutor:
    """Checks each decision against the contract of `engine.llm.decision` and carries it out."""

    config: ResolvedConfig
    error_rate: int = 0
    windows: Windows = (None,)
    num_steps: int = 0
    num_copies: int = 0
    num_pending: int = 0
    drew: set[int] = field(default_factory=set)
    """Sequences for which the last step drew a token."""
    sequences: dict[int, _State] = field(default_factory=dict)
    slots: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """The layer group that wrote a slot, and the digest, by block and offset."""
    states: dict[int, list[int]] = field(default_factory=dict)
    """For each sequence with contrastive search, the text whose hidden states are known."""
    last_states: dict[int, int] = field(default_factory=dict)
    """The state of each candidate."""
    scheduler: Scheduler | None = None
    """Knows the texts of groups, whose changes an executor does not see."""
    parts_by_seed: dict[int, tuple[StatePart, ...]] = field(default_factory=dict)
    """The parts of requests that are states, by the requests' seeds."""
    kept: set[bytes] = field(default_factory=set)
    most_kept: int = 1
    num_encoded: list[int] = field(default_factory=list)
    """The number of parts that each step encoded."""
    num_advanced: int = 0
    """The number of slices that were done of parts that were not finished."""
    looks_both_ways: bool = False

    def launch(self, decision: ScheduleDecision) -> "PagedStep":
        return PagedStep(self.execute(decision))

    def execute(self, decision: ScheduleDecision) -> StepOutput:
        self.num_steps += 1
        assert decision.num_tokens <= self.config.max_num_batched_tokens
        assert decision.has_work and len(decision.scheduled) <= self.config.max_num_seqs
        for seq_id in decision.finished:
            del self.sequences[seq_id]
        for new in decision.new:
            assert new.seq_id not in self.sequences, "announced twice"
            states = self.parts_by_seed.get(new.seed, ()) if new.guides is None else ()
            self.sequences[new.seq_id] = _State(new, _shown(new.prompt_token_ids, states))
        self._copy(decision.copies)
        self._encode(decision)
        for entry in decision.scheduled:
            self._learn_text(entry)
        self._write(decision.scheduled)
        outputs = [self._attend(s) for s in decision.scheduled]
        self.drew = {s.seq_id for s in decision.scheduled if s.num_draws}
        return StepOutput(outputs, forward_time_s=0.5, sample_time_s=0.25)

    def shutdown(self) -> None:
        self.sequences.clear()

    def _encode(self, decision: ScheduleDecision) -> None:
        self.kept -= set(decision.dropped)
        new = [part.digest for part in decision.encoded]
        assert not self.kept & set(new), "encoded again"
        assert len(set(new)) == len(new), "encoded twice"
        self.kept |= set(new)
        if decision.advanced is not None:
            assert decision.advanced.part.digest not in self.kept, "advanced in vain"
            self.num_advanced += decision.advanced.num_slices
        assert len(self.kept) <= self.most_kept, "more states than there is memory for"
        assert set(new) <= {rows.digest for s in decision.scheduled for rows in s.states}
        self.num_encoded.append(len(new))

    def _check_states(self, entry: ScheduledSequence, token_ids: list[int]) -> None:
        """The rows that are states, and only those, get the right ones."""
        found = {}
        for rows in entry.states:
            assert rows.digest in self.kept, "states are not there"
            for i in range(rows.num_rows):
                found[rows.first_row + i] = state_number(rows.digest, rows.first_state + i)
            if self.looks_both_ways:
                row = rows.first_row + rows.num_rows
                following = state_number(rows.digest, rows.first_state + rows.num_rows)
                later = self.sequences[entry.seq_id].history[entry.start + row :][:1]
                assert later != [following], "a part was cut that must not be"
        assert found == {i: one for i, one in enumerate(token_ids) if one >= VOCAB_SIZE}

    def _learn_text(self, entry: ScheduledSequence) -> None:
        state = self.sequences[entry.seq_id]
        if not _is_searched(state.new.sampling):
            return
        assert self.scheduler is not None and not entry.drafts
        sequence = self.scheduler._sequences.find(entry.seq_id)
        state.is_gone = sequence is None
        if sequence is not None:
            state.history = _shown(sequence.token_ids, sequence.states)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        self.num_copies += len(copies)
        sources, destinations = [s for s, _ in copies], [d for _, d in copies]
        assert len(set(destinations)) == len(destinations), "two copies into one block"
        assert not set(sources) & set(destinations), "a copy of a copy: order would matter"
        for source, destination in copies:
            for offset in range(self.config.block_size):
                self.slots[destination, offset] = self.slots.get((source, offset), (-1, -1))

    def _write(self, scheduled: list[ScheduledSequence]) -> None:
        writer: dict[int, tuple[int, int]] = {}
        for entry in scheduled:
            state = self.sequences[entry.seq_id]
            assert entry.token_ids, "nothing to do"
            end = entry.start + len(entry.token_ids)
            known_end = end - len(entry.drafts)
            token_ids = state.history[entry.start : known_end]
            if entry.token_ids[0] == PENDING_TOKEN_ID:
                self.num_pending += 1
                assert entry.seq_id in self.drew, "the step before drew no token for it"
                assert len(token_ids) == len(entry.token_ids) - len(entry.drafts) == 1
            elif state.is_gone:
                token_ids = entry.token_ids
            else:
                ids = [PLACEHOLDER if one >= VOCAB_SIZE else one for one in token_ids]
                assert entry.token_ids == ids + entry.drafts
                self._check_states(entry, token_ids)
            assert not entry.drafts or known_end == len(state.history), "drafts of known tokens"
            assert all(0 <= token_id < VOCAB_SIZE for token_id in entry.drafts)
            token_ids = token_ids + entry.drafts
            assert len(entry.blocks) == len(self.windows)
            for group, (block_ids, num_passed) in enumerate(entry.blocks):
                assert num_passed + len(block_ids) == -(-end // self.config.block_size)
                assert all(0 <= b < self.config.num_kv_blocks for b in block_ids)
                value = self._read(entry, group, entry.start - 1) if entry.start else None
                for position, token_id in enumerate(token_ids, entry.start):
                    value = hash((_root(state.new.adapter) if value is None else value, token_id))
                    slot = self._slot(entry, group, position)
                    owner = writer.setdefault(slot[0], (entry.seq_id, group))
                    assert owner == (entry.seq_id, group), "two write a block"
                    self.slots[slot] = group, value
        for entry in scheduled:
            for group, (block_ids, _) in enumerate(entry.blocks):
                for block_id in block_ids:
                    owner = writer.get(block_id, (entry.seq_id, group))
                    assert owner == (entry.seq_id, group), f"block {block_id} is shared and written"

    def _attend(self, entry: ScheduledSequence) -> SequenceOutput:
        state = self.sequences[entry.seq_id]
        new, sampling = state.new, state.new.sampling
        if state.is_gone:
            return SequenceOutput(entry.seq_id, token_ids=[0] * entry.num_draws)
        end = entry.start + len(entry.token_ids)
        known_end = end - len(entry.drafts)
        text = digests(state.history[:known_end] + entry.drafts, new.adapter)
        for group, window in enumerate(self.windows):
            first = 0 if window is None else max(0, entry.start - window + 1)
            read = [self._read(entry, group, position) for position in range(first, end)]
            assert read == text[first:], "the slots hold another text"
        num_output = len(state.history) - len(new.prompt_token_ids)
        assert entry.num_output_tokens == num_output
        is_last = known_end == len(state.history)
        assert (entry.num_draws > 0) == (is_last and sampling.max_tokens > 0)
        # Only where a row is judged alone too: chunks may end anywhere.
        if is_last and breaks(text[known_end - 1], self.error_rate):
            if entry.num_draws and not _is_searched(sampling):
                state.history.append(0)  # a step that is launched already starts from something
            return SequenceOutput(entry.seq_id, error="logits are not finite")
        output = SequenceOutput(entry.seq_id)
        if sampling.contrast is not None:
            output.similarity = self._compare(entry, text)
        if entry.prompt_logprobs:
            scored = range(entry.start, min(end, len(new.prompt_token_ids) - 1))
            assert scored, "no prompt token to score in this chunk"
            output.prompt_logprobs = [score(text[p], state.history[p + 1]) for p in scored]
        if _is_searched(sampling):
            if entry.num_draws:
                assert sampling.logprobs is not None and sampling.temperature == 0.0
                output.logprobs = [likeliest(text[-1], sampling.logprobs)]
                output.token_ids = [output.logprobs[0].token_id]
            return output
        for row, digest in enumerate(text[end - entry.num_draws :] if entry.num_draws else ()):
            if row > 0 and entry.drafts[row - 1] != output.token_ids[-1]:
                break
            if row > 0 and breaks(digest, self.error_rate):
                output.error = "logits are not finite"
                break
            token_id = draw(new, digest, num_output + row)
            state.history.append(token_id)
            output.token_ids.append(token_id)
            if sampling.logprobs is not None:
                output.logprobs = [*(output.logprobs or []), score(digest, token_id)]
        return output

    def _compare(self, entry: ScheduledSequence, text: list[int]) -> float | None:
        """Keep states as the model runner does, and check that they are those of the text."""
        if entry.follows is None:
            known = self.states[entry.seq_id][: entry.start] if entry.start else []
            assert len(known) == entry.start, "states of the text are missing"
            self.states[entry.seq_id] = known + text[entry.start :]
            return None
        assert len(entry.token_ids) == 1
        known = self.states[entry.follows]
        if len(known) == entry.start - 1:
            known.append(self.last_states[entry.follows])
        assert known == text[:-1], "a candidate is compared with another text"
        self.states[entry.seq_id] = known
        self.last_states[entry.seq_id] = text[-1]
        return similarity(text[-1])

    def _slot(self, entry: ScheduledSequence, group: int, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.config.block_size)
        block_ids, num_passed = entry.blocks[group]
        assert index >= num_passed, "a block that is looked at was given back"
        return block_ids[index - num_passed], offset

    def _read(self, entry: ScheduledSequence, group: int, position: int) -> int:
        writer, value = self.slots[self._slot(entry, group, position)]
        assert writer == group, "the slots are another group's"
        return value


def _is_searched(sampling: SamplingParams) -> bool:
    """Whether a sequence belongs to a search, for which nothing is drawn."""
    return sampling.beams is not None or sampling.contrast is not None


@dataclass
class Answer:
    """The sum of one completion's events."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error_code: str | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_cached_tokens: int = 0
    queue_times_s: list[float] = field(default_factory=list, compare=False)

    def add(self, event: TokenEvent) -> None:
        assert self.finish_reason is None, "an event after the last one"
        is_news = event.token_ids or event.finish_reason or event.queue_time_s is not None
        assert is_news, "an event without news"
        if event.prompt_logprobs is not None:
            assert not self.token_ids and event.index == 0, "prompt scores belong to the first"
            self.prompt_logprobs = event.prompt_logprobs
        if event.queue_time_s is not None:
            self.queue_times_s.append(event.queue_time_s)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or []
        self.finish_reason = event.finish_reason
        self.stop_token_id = event.stop_token_id
        self.error_code = None if event.failure is None else event.failure.code
        self.num_cached_tokens = event.num_cached_tokens

    def failed(self, code: str) -> "Answer":
        self.finish_reason, self.error_code = FinishReason.ERROR, code
        return self


Answers = dict[tuple[str, int], Answer]


def answer_alone(
    request: GenerateRequest,
    index: int,
    config: ResolvedConfig,
    error_rate: int = 0,
    windows: Windows = (None,),
) -> Answer:
    """Compute what the request must get whatever shares the batch, with the rules written down once
    more."""
    sampling, prompt = request.sampling, shown(request)
    if sampling.beams is not None:
        return beams_alone(request, config, error_rate, windows)[index]
    if sampling.contrast is not None:
        return contrast_alone(request, config, error_rate, windows)
    suppressed = (() if sampling.ignore_eos else (EOS,)) + sampling.stop_token_ids
    assert sampling.seed is not None
    new = NewSequence(0, prompt, sampling, sampling.seed, index, suppressed, request.adapter)
    answer, text = Answer(), list(prompt)
    capacity = config.kv_layout(windows).most_tokens(config.num_kv_blocks)
    while answer.finish_reason is None:
        digest = digests(text, request.adapter)[-1]
        if breaks(digest, error_rate):
            return answer.failed("request_failed")
        if sampling.max_tokens == 0:
            answer.finish_reason = FinishReason.LENGTH
            break
        token_id = draw(new, digest, len(answer.token_ids))
        text.append(token_id)
        answer.token_ids.append(token_id)
        if len(answer.token_ids) > sampling.min_tokens:
            if token_id == EOS and not sampling.ignore_eos:
                answer.finish_reason = FinishReason.STOP
            elif token_id in sampling.stop_token_ids:
                answer.finish_reason, answer.stop_token_id = FinishReason.STOP, token_id
        if answer.finish_reason is None and (
            len(answer.token_ids) == sampling.max_tokens or len(text) == config.max_model_len
        ):
            answer.finish_reason = FinishReason.LENGTH
        if answer.finish_reason is None and len(text) > capacity:
            return answer.failed("out_of_kv_blocks")
    return answer


def beams_alone(
    request: GenerateRequest, config: ResolvedConfig, error_rate: int, windows: Windows
) -> list[Answer]:
    """Compute the same for beam search, over whole vocabularies and texts, as transformers does
    it."""
    sampling, prompt, beams = request.sampling, shown(request), request.sampling.beams
    assert beams is not None
    width, eos = beams.width, () if sampling.ignore_eos else (EOS,)
    ends = {*eos, *sampling.stop_token_ids}
    most = min(sampling.max_tokens, config.max_model_len - len(prompt))
    capacity = config.kv_layout(windows).most_tokens(config.num_kv_blocks // width)
    running: list[tuple[float, int, list[TokenLogprob]]] = [
        (0.0, digests(prompt, request.adapter)[-1], [])
    ]
    done: list[tuple[float, list[TokenLogprob]]] = []
    for length in range(1, most + 1):
        if any(breaks(digest, error_rate) for _, digest, _ in running):
            return [Answer().failed("request_failed")] * sampling.n
        found = []
        for rank, (total, digest, text) in enumerate(running):
            row = likeliest(digest, VOCAB_SIZE)
            for token_id, logprob in zip(row.top_ids, row.top_logprobs, strict=True):
                if length > sampling.min_tokens or token_id not in ends:
                    place = 1 + sum(other > logprob for other in row.top_logprobs)
                    token = TokenLogprob(token_id, logprob, place, [], [])
                    found.append((total + logprob, -rank, hash((digest, token_id)), [*text, token]))
        found.sort(key=lambda one: one[:2], reverse=True)  # of equals the first stays the first
        over = [length == most or text[-1].token_id in ends for *_, text in found]
        running = [
            (total, digest, text)
            for (total, _, digest, text), is_over in zip(found, over, strict=True)
            if not is_over
        ][:width]
        for (total, _, _, text), is_over in list(zip(found, over, strict=True))[:width]:
            if is_over:
                done.append((total / length**beams.length_penalty, text))
        done = sorted(done, key=lambda one: -one[0])[:width]
        if len(done) == width and running:
            could_grow = beams.early_stopping == "never" and beams.length_penalty > 0
            best = running[0][0] / (most if could_grow else length) ** beams.length_penalty
            if beams.early_stopping is True or best <= done[-1][0]:
                break
        if running and len(prompt) + length > capacity:
            return [Answer().failed("out_of_kv_blocks")] * sampling.n
    answers = []
    for _, text in done[: sampling.n]:
        last = text[-1].token_id
        answers.append(
            Answer(
                token_ids=[token.token_id for token in text],
                finish_reason=FinishReason.STOP if last in ends else FinishReason.LENGTH,
                stop_token_id=last if last in ends and last not in eos else None,
                logprobs=text,
            )
        )
    return answers


def contrast_alone(
    request: GenerateRequest, config: ResolvedConfig, error_rate: int, windows: Windows
) -> Answer:
    """Compute the same for contrastive search."""
    sampling, contrast = request.sampling, request.sampling.contrast
    assert contrast is not None
    text, answer = shown(request), Answer()
    capacity = config.kv_layout(windows).most_tokens(config.num_kv_blocks // contrast.width)
    most = min(sampling.max_tokens, config.max_model_len - len(text))

    def digest_of(*more: int) -> int:
        return digests([*text, *more], request.adapter)[-1]

    if breaks(digest_of(), error_rate):
        return answer.failed("request_failed")
    while answer.finish_reason is None:
        if len(text) + 1 > capacity:
            return answer.failed("out_of_kv_blocks")
        row = likeliest(digest_of(), contrast.width)
        after = [digest_of(token_id) for token_id in row.top_ids]
        if any(breaks(digest, error_rate) for digest in after):
            return answer.failed("request_failed")
        scores = [
            (1.0 - contrast.alpha) * math.exp(logprob) - contrast.alpha * similarity(digest)
            for logprob, digest in zip(row.top_logprobs, after, strict=True)
        ]
        place = scores.index(max(scores))
        token_id, logprob = row.top_ids[place], row.top_logprobs[place]
        rank = 1 + sum(other > logprob for other in row.top_logprobs)
        text.append(token_id)
        answer.token_ids.append(token_id)
        answer.logprobs.append(TokenLogprob(token_id, logprob, rank, [], []))
        if token_id == EOS and not sampling.ignore_eos:
            answer.finish_reason = FinishReason.STOP
        elif token_id in sampling.stop_token_ids:
            answer.finish_reason, answer.stop_token_id = FinishReason.STOP, token_id
        elif len(answer.token_ids) == most:
            answer.finish_reason = FinishReason.LENGTH
    return answer


def run_step(scheduler: Scheduler, executor: PagedExecutor, answers: Answers) -> ScheduleDecision:
    """Run one step, check its invariants and add its events to `answers`."""
    decision = scheduler.schedule()
    assert decision.scheduled, "there was work, but no progress"
    for event in scheduler.commit(decision, executor.execute(decision)):
        answers.setdefault((event.request_id, event.index), Answer()).add(event)
    scheduler.check_invariants()
    return decision


def run_all(
    scheduler: Scheduler, executor: PagedExecutor, requests: Iterable[GenerateRequest] = ()
) -> Answers:
    """Add the requests and step until everything has ended."""
    answers: Answers = {}
    for request in requests:
        scheduler.add(request)
    for _ in range(100_000):
        if not scheduler.has_work():
            return answers
        run_step(scheduler, executor, answers)
    raise AssertionError("the scheduler never finished")


def _root(adapter: str | None) -> int:
    return crc32((adapter or "").encode())
