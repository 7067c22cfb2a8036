"""Sessions of random requests, checked in every step."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from engine.contract.generate import GenerateRequest, TokenEvent
from engine.contract.groups import BeamParams, ContrastParams
from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.decision import ScheduleDecision, StepOutput
from engine.llm.engine import LLMEngine
from engine.llm.kept_states import MOST_ENCODED, KeptStates
from engine.llm.request import Sequence
from engine.llm.scheduler import Scheduler
from tests.helpers.llm.paged_executor import (
    PLACEHOLDER,
    VOCAB_SIZE,
    Answer,
    Answers,
    Guesser,
    PagedExecutor,
    Windows,
    answer_alone,
    digests,
    make_config,
    make_request,
    make_scheduler,
    picture_facts,
    score,
    shown,
)


def random_windows(rng: random.Random) -> Windows:
    """Mostly of plain models; else groups that slide, alone, with others and beside a whole one."""
    windows: list[int | None] = rng.choice(
        [[None], [None], [rng.randint(2, 40)], [None, rng.randint(2, 40)], []]
    )
    windows = windows or [None, *(rng.randint(2, 40) for _ in range(rng.randint(2, 4)))]
    rng.shuffle(windows)
    return tuple(windows)


def random_config(rng: random.Random, num_groups: int) -> ResolvedConfig:
    block_size = rng.choice([1, 2, 3, 4, 8, 16])
    num_blocks = max(3, rng.choice([24, 48, 90, 400]) // block_size) * num_groups
    return make_config(
        block_size=block_size,
        num_kv_blocks=num_blocks,
        # Sometimes more than the pool holds, so that a sequence outgrows it.
        max_model_len=max(
            2, int(num_blocks // num_groups * block_size * rng.choice([0.5, 0.8, 1.0, 1.3]))
        ),
        max_num_seqs=rng.choice([1, 2, 3, 5, 8]),
        max_num_batched_tokens=rng.choice([1, 2, 5, 16, 64, 300]),
        max_step_ms=rng.choice([0.0, 0.0, 0.01, 50.0]),
        max_step_ratio=rng.choice([0.0, 1.0, 2.0]),
        enable_prefix_caching=rng.random() < 0.8,
        max_idle_cached_blocks=rng.choice([0, 1, 4, num_blocks]),
        scheduling_policy=rng.choice(["fcfs", "priority"]),
        num_speculative_tokens=6,
    )


def random_request(
    rng: random.Random,
    name: str,
    stems: list[list[int]],
    config: ResolvedConfig,
    windows: Windows,
    pictures: PictureFacts | None = None,
) -> GenerateRequest:
    capacity = config.kv_layout(windows).most_tokens(config.num_kv_blocks)
    if pictures is not None and pictures.looks_both_ways:
        most = config.max_num_batched_tokens - pictures.rows_per_crop + 1
        config = replace(config, max_num_seqs=min(config.max_num_seqs, most))
    search = random_search(rng, config)
    if search is not None:
        of_each = config.kv_layout(windows).most_tokens(config.num_kv_blocks // search.width)
        search, capacity = (search, of_each) if of_each >= 2 else (None, capacity)
    beams = search if isinstance(search, BeamParams) else None
    contrast = search if isinstance(search, ContrastParams) else None
    longest = min(config.max_model_len, capacity) - 1
    stem = rng.choice(stems)
    # Few lengths, so that whole prompts repeat.
    prompt = stem[: rng.choice([0, 4, 8, 16, 48])] + [
        rng.randrange(PLACEHOLDER) for _ in range(rng.choice([0, 0, 1, 2, 9, 30]))
    ]
    prompt = prompt[:longest] or [rng.randrange(PLACEHOLDER)]
    prompt, states = with_pictures(rng, prompt, longest, pictures)
    max_tokens = rng.choice([0, 1, 2, 5, 12, 40, 60, 1000])
    if search is not None:
        max_tokens = max(1, min(max_tokens, 60))
    n = rng.choice([1, 1, 1, 2, 3, 5])
    if beams is not None:
        n = rng.randint(1, beams.width)
    return make_request(
        name,
        prompt,
        max_tokens,
        n=n if contrast is None else 1,
        min_tokens=rng.choice([0, 0, 3]) if contrast is None else 0,
        ignore_eos=rng.random() < 0.6,
        stop_token_ids=tuple(rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 0, 1, 8]))),
        seed=rng.getrandbits(64) - 2**63,
        logprobs=rng.choice([None, 0]),
        prompt_logprobs=None if states else rng.choice([None, None, None, 0]),
        priority=rng.randint(-2, 2),
        cache_salt=rng.choice([None, None, None, None, "pepper"]),
        adapter=rng.choice([None, None, None, None, None, "lora"]),
        beams=beams,
        contrast=contrast,
        states=states,
    )


def with_pictures(
    rng: random.Random, prompt: list[int], longest: int, pictures: PictureFacts | None
) -> tuple[list[int], list[StatePart]]:
    """Put some pictures of few contents into a prompt, as far as they fit."""
    if pictures is None:
        return prompt, []
    rows, parts, start = pictures.rows_per_crop, [], 0
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        start += rng.choice([0, 0, 1, 3, 8])
        if start > len(prompt) or len(prompt) + rows > longest:
            break
        prompt = [*prompt[:start], *[PLACEHOLDER] * rows, *prompt[start:]]
        content = bytes([rng.randrange(3), 0, 0])
        parts.append(StatePart(start=start, length=rows, content=content))
        start += rows
    return prompt, parts


def random_pictures(rng: random.Random, config: ResolvedConfig) -> PictureFacts | None:
    rows = rng.randint(1, 9)
    both_ways = rng.random() < 0.5 and rows <= config.max_num_batched_tokens
    return rng.choice([None, picture_facts(rows, looks_both_ways=both_ways)])


def random_search(rng: random.Random, config: ResolvedConfig) -> BeamParams | ContrastParams | None:
    most = min(5, config.max_num_seqs, config.max_num_batched_tokens)
    if most == 1 or rng.random() < 0.5:
        return None
    width = rng.randint(2, most)
    if rng.random() < 0.4:
        return ContrastParams(alpha=rng.choice([0.1, 0.6, 1.0]), width=width)
    return BeamParams(
        width=width,
        length_penalty=rng.choice([1.0, 0.0, -1.0, 2.0]),
        early_stopping=rng.choice([True, False, "never"]),
    )


@dataclass
class Session:
    """One random run."""

    most_steps: ClassVar[int] = 20_000
    seed: int
    config: ResolvedConfig = field(init=False)
    scheduler: Scheduler = field(init=False)
    executor: PagedExecutor = field(init=False)
    added: dict[str, GenerateRequest] = field(default_factory=dict)
    aborted: set[tuple[str, int]] = field(default_factory=set)
    """Completions."""
    answers: Answers = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    journal: CacheJournal | None = None
    """What learns of the scheduler's cache, if a session makes it before its scheduler."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.windows = random_windows(self.rng)
        self.config = random_config(self.rng, len(self.windows))
        # Often right, so that long drafts end in the middle, or nearly always wrong.
        self.guesser = Guesser(self.rng, self.rng.choice([0.05, 0.8, 0.95]))
        self.drafter = self.rng.choice([None, self.guesser, self.guesser])
        self.pictures = random_pictures(self.rng, self.config)
        self.most_kept = self.rng.randint(1, 3)
        self.num_slices = self.rng.choice([1, 1, 5])
        self.scheduler = self.make_scheduler()
        self.model: dict[str, Any] = {
            "error_rate": self.rng.choice([0, 0, 40]),
            "windows": self.windows,
            "most_kept": self.most_kept,
            "looks_both_ways": self.pictures is not None and self.pictures.looks_both_ways,
        }
        self.executor = PagedExecutor(self.config, **self.model)

    def make_scheduler(self) -> Scheduler:
        states = KeptStates(self.most_kept, self.pictures, lambda part: self.num_slices)
        return make_scheduler(self.config, self.windows, self.drafter, states, self.journal)

    def run(self) -> None:
        rng = self.rng
        stems = [[rng.randrange(PLACEHOLDER) for _ in range(60)] for _ in range(2)]
        pressure = rng.choice([0.2, 0.6, 1.0])
        abort_rate = rng.choice([0.0, 0.0, 0.05, 0.3])
        reset_rate = rng.choice([0.0, 0.0, 0.1])
        to_come = [
            random_request(rng, f"r{i}", stems, self.config, self.windows, self.pictures)
            for i in range(14)
        ]
        self.executor.scheduler = self.scheduler
        self.executor.parts_by_seed = {r.sampling.seed: r.states for r in to_come}
        while to_come or self.has_work():
            while to_come and rng.random() < pressure:
                request = to_come.pop()
                self.added[request.request_id] = request
                self.scheduler.add(request)
            self.maybe_abort(abort_rate)
            if rng.random() < reset_rate:
                self.seen["held blocks that nobody finds"] += self.forget_cached()
            if self.has_work():
                self.step(abort_rate)
        self.check_end()

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def forget_cached(self) -> int:
        """Empty the prefix cache. Returns the number of blocks that held texts keep."""
        pool = self.scheduler.pool
        pool.forget_cached()
        assert not list(pool.cache.idle)
        return sum(block_id in pool.cache for block_id in range(pool.num_blocks))

    def step(self, abort_rate: float) -> None:
        rng = self.rng
        num_preemptions = self.scheduler.stats().num_preemptions
        decision = self.scheduler.schedule()
        scheduled = {s.seq_id for s in decision.scheduled}
        running = self.scheduler._sequences.running
        first = {s.seq_id for s in running[0].together}
        waits = decision.has_work and any(_needs_states(s) for s in running[0].together)
        assert scheduled & first or waits, "the first in rank made no progress"
        if (
            self.scheduler.stats().num_preemptions == num_preemptions
            and self.scheduler._pool.num_free >= len(self.windows)
        ):
            held_up = [s.seq_id for s in running if s.num_missing == 1 and not _needs_states(s)]
            assert scheduled.issuperset(held_up), "a decode was held up with blocks to spare"
        self.maybe_abort(abort_rate)
        output = self.executor.execute(decision)
        self.maybe_abort(abort_rate)
        self.scheduler.note_time(decision, rng.choice([1e-4, 0.03, rng.lognormvariate(-3, 2)]))
        self.note(self.scheduler.commit(decision, output))
        self.scheduler.check_invariants()

    def note(self, events: Iterable[TokenEvent]) -> None:
        """Take in what the clients get from a step."""
        for event in events:
            key = (event.request_id, event.index)
            assert key not in self.aborted, "an event after the abort"
            self.answers.setdefault(key, Answer()).add(event)
        self.check_windows()
        assert self.executor.num_steps < self.most_steps, "it does not end"

    def check_windows(self) -> None:
        """Nobody holds what its windows have passed."""
        layout = self.config.kv_layout(self.windows)
        for sequence in self.scheduler._sequences.running:
            for table in sequence.table.tables:
                num_passed = layout.num_passed(table.window, sequence.num_computed)
                assert table.num_passed >= num_passed
                self.seen["windows that moved"] += num_passed > 0

    def maybe_abort(self, rate: float) -> None:
        """Cancel some request or one of its completions, unfinished or not; twice is as good as
        once."""
        if self.added and self.rng.random() < rate:
            request = self.rng.choice(list(self.added.values()))
            request_id, completions = request.request_id, range(request.sampling.n)
            index = self.rng.choice([None, *completions])
            self.aborted |= {(request_id, i) for i in completions if index in (None, i)}
            self.scheduler.abort(request_id, index)
            self.scheduler.abort(request_id, index)
            self.scheduler.abort(request_id, len(completions))
            self.scheduler.abort("never heard of")

    def check_end(self) -> None:
        for request in self.added.values():
            for index in range(request.sampling.n):
                self.check_answer(request, index)
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert (stats.kv_blocks_used, stats.kv_slots_unused) == (0, 0)
        finished = self.scheduler._sequences.take_finished()
        assert sorted(finished) == sorted(self.executor.sequences), "the executor was not told"
        self.seen["preemptions"] += stats.num_preemptions
        self.seen["encoded parts"] += sum(self.executor.num_encoded)
        self.seen["advanced slices"] += self.executor.num_advanced
        most = max(self.executor.num_encoded, default=0)
        assert most <= MOST_ENCODED
        self.seen["copies"] += self.executor.num_copies
        self.seen["cached tokens"] += stats.prefix_cache_hits
        self.seen["aborted"] += len(self.aborted)
        self.seen["accepted drafts"] += self.guesser.num_accepted
        self.seen["rejected drafts"] += self.guesser.num_drafts - self.guesser.num_accepted

    def check_answer(self, request: GenerateRequest, index: int) -> None:
        expected = answer_alone(request, index, self.config, self.executor.error_rate, self.windows)
        answer = self.answers.get((request.request_id, index), Answer())
        if (request.request_id, index) in self.aborted and answer.finish_reason is None:
            assert answer.token_ids == expected.token_ids[: len(answer.token_ids)]
            return
        assert answer.token_ids == expected.token_ids
        assert answer.finish_reason == expected.finish_reason
        assert (answer.stop_token_id, answer.error_code) == (
            expected.stop_token_id,
            expected.error_code,
        )
        self.seen[f"{answer.finish_reason} {answer.error_code or ''}".strip()] += 1
        search = _search(request)
        if search is not None:
            self.seen[f"{search} {answer.finish_reason}"] += 1
            assert answer.logprobs == (
                [] if request.sampling.logprobs is None else expected.logprobs
            )
        self.check_scores(request, index, answer)
        self.check_sharing(request, answer)
        if (request.request_id, 0) not in self.aborted:
            assert len(answer.queue_times_s) == (index == 0)

    def check_scores(self, request: GenerateRequest, index: int, answer: Answer) -> None:
        prompt, sampling = shown(request), request.sampling
        values = digests(prompt + answer.token_ids, request.adapter)
        if sampling.logprobs is not None and _search(request) is None:
            first = len(prompt) - 1
            assert answer.logprobs == [
                score(values[first + i], token_id) for i, token_id in enumerate(answer.token_ids)
            ]
        if answer.prompt_logprobs is not None:
            scores = [score(v, t) for v, t in zip(values, prompt[1:], strict=False)]
            assert answer.prompt_logprobs == [None, *scores]
            self.seen["scored prompts"] += 1
        came = answer.prompt_logprobs is not None
        has_tokens = bool(answer.token_ids) or answer.error_code is None
        asked = index == 0 and sampling.prompt_logprobs is not None
        if sampling.beams is not None and not has_tokens:
            assert came <= asked, "a search that fails may have begun, or not"
        else:
            assert came == (asked and has_tokens)

    def check_sharing(self, request: GenerateRequest, answer: Answer) -> None:
        """What came from the cache was the text of a request with the same salt and adapter."""
        texts = [[]]
        for other in self.added.values():
            if other is request or (other.cache_salt, other.adapter) != (
                request.cache_salt,
                request.adapter,
            ):
                continue
            prompt = shown(other)
            if _search(other) and shown(request)[: len(prompt)] == prompt:
                return  # it may have tried any text
            for index in range(other.sampling.n):
                said = self.answers.get((other.request_id, index), Answer()).token_ids
                texts.append(prompt + said)
        prompt = shown(request)
        assert answer.num_cached_tokens < len(prompt)
        shared = max(common_prefix(prompt, text) for text in texts)
        assert answer.num_cached_tokens <= shared


def _needs_states(sequence: Sequence) -> bool:
    """Whether the next row of a sequence is a state, which may have to be made first."""
    start = sequence.table.num_tokens
    return bool(sequence.states_between(start, start + 1))


def _search(request: GenerateRequest) -> str | None:
    """Give the search that a request asks for in place of draws."""
    if request.sampling.beams is not None:
        return "beams"
    return None if request.sampling.contrast is None else "contrast"


def common_prefix(left: list[int], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


@dataclass
class AccountedExecutor(PagedExecutor):
    """Notes how far the host is ahead of the steps it has seen the end of."""

    kv_bytes_committed: int = 0
    num_launched_ahead: int = 0
    num_blocking: int = 0
    in_flight: list[ScheduleDecision] = field(default_factory=list)

    def launch(self, decision: ScheduleDecision) -> Any:
        assert len(self.in_flight) <= 1, "too far ahead"
        assert not any(earlier.blocks_next for earlier in self.in_flight)
        self.num_launched_ahead += bool(self.in_flight)
        self.num_blocking += decision.blocks_next
        self.in_flight.append(decision)
        return AccountedStep(self, decision, self.execute(decision))


@dataclass
class AccountedStep:
    executor: AccountedExecutor
    decision: ScheduleDecision
    output: StepOutput

    def collect(self) -> StepOutput:
        assert self.executor.in_flight.pop(0) is self.decision, "collected out of order"
        return self.output


class EngineSession(Session):
    """A random run whose steps an engine takes."""

    engine: LLMEngine

    def run_by_engine(self, executor: type[PagedExecutor], **changes: Any) -> None:
        self.config = replace(self.config, **changes)
        self.scheduler = self.make_scheduler()
        self.executor = executor(self.config, **self.model)
        self.engine = LLMEngine(self.scheduler, self.executor, self.config)  # type: ignore[arg-type]

    def has_work(self) -> bool:
        return self.engine.has_work()

    def step(self, abort_rate: float) -> None:
        self.note(self.engine.step()[0])


class OverlappedSession(EngineSession):
    """A random run, the next step always launched early. Aborts meet steps in flight."""

    executor: AccountedExecutor

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run_by_engine(AccountedExecutor, async_scheduling=True)

    def check_end(self) -> None:
        super().check_end()
        assert not self.executor.in_flight
        self.seen["ahead"] += self.executor.num_launched_ahead
        self.seen["pending"] += self.executor.num_pending
        self.seen["blocking"] += self.executor.num_blocking


def run_sessions(kind: type[Session], count: int) -> Counter[str]:
    """Run sessions with new seeds; returns how often they saw what they count."""
    seen: Counter[str] = Counter()
    for _ in range(count):
        seed = random.getrandbits(32)
        session = kind(seed)
        try:
            session.run()
        except Exception as error:
            error.add_note(f"reproduce with {kind.__name__}({seed}).run(); {session.config}")
            raise
        seen += session.seen
    return +seen


EVERYTHING = {
    "preemptions",
    "copies",
    "cached tokens",
    "held blocks that nobody finds",
    "encoded parts",
    "advanced slices",
    "aborted",
    "scored prompts",
    "stop",
    "length",
    "error request_failed",
    "error out_of_kv_blocks",
    "accepted drafts",
    "rejected drafts",
    "beams stop",
    "beams length",
    "beams error",
    "contrast length",
    "contrast error",
}
"""What the runs of a test must have seen, however they step."""
